"""What VAR adds to a training step: attached (closed form) against plain SGD and against the autograd form."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from harness import cpu_ratio_in_turns, interleaved, record
from torch import nn

import trimtab
from trimtab import models
from trimtab.parameters import entries
from trimtab.penalties import VarianceAmplifier

BATCH = 64
STRENGTH = 1e-5


def step_of(model: nn.Module, form: str) -> Callable[[], Any]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    penalty = VarianceAmplifier(STRENGTH)
    if form == "attached":
        trimtab.attach(optimizer, penalty)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        if form == "autograd":
            loss = loss + penalty.value(model)
        loss.backward()
        optimizer.step()

    return step


def gradient_forms(model: nn.Module) -> dict[str, Callable[[], Any]]:
    """The work that each form adds to a step, alone; asserts that both give the same gradient."""
    penalty = VarianceAmplifier(STRENGTH)
    model = copy.deepcopy(model)

    def clear() -> None:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)

    # `attach` walks the model once, not every step; neither form is charged for it here
    known = entries(model)
    forms: dict[str, Callable[[], Any]] = {
        "attached": lambda: penalty.add_gradient_(known),
        "autograd": lambda: penalty.value(known).backward(),
    }
    gradients = {}
    for name, call in forms.items():
        clear()
        call()
        gradients[name] = [parameter.grad.clone() for parameter in model.parameters() if parameter.ndim > 1]
    for actual, expected in zip(gradients["attached"], gradients["autograd"], strict=True):
        assert float((actual - expected).norm() / expected.norm()) < 1e-4
    return forms


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = models.create(name, num_classes=10)
    forms = gradient_forms(model)
    alone = interleaved(forms, repeats=15)
    step_ratio, least = cpu_ratio_in_turns(step_of(model, "plain"), step_of(model, "attached"), repeats)
    form_ratio = alone["attached"].cpu_median / alone["autograd"].cpu_median
    return [
        {
            "question": f"{name}, batch {BATCH}: step with VAR attached / plain SGD step",
            "ratio": step_ratio,
            "bar": "<= 1.05",
            "met": step_ratio <= 1.05,
            "ratio_of_least": least,
        },
        {
            "question": f"{name}: added by the attached form / added by the autograd form",
            "ratio": form_ratio,
            "bar": "<= 0.5",
            "met": form_ratio <= 0.5,
            "attached_cpu_ms": 1e3 * alone["attached"].cpu_median,
            "autograd_cpu_ms": 1e3 * alone["autograd"].cpu_median,
        },
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    record("step_var", measure("resnet20", repeats=30) + measure("resnet18", repeats=8))

"""What the levers that act after the step add to it: Concentrate, ProximalL1, EMA and MeanWeights against plain SGD."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from harness import cpu_ratio_in_turns, record
from torch import nn

import trimtab
from trimtab import models
from trimtab.averaging import EMA, MeanWeights
from trimtab.penalties import Concentrate, ProximalL1

BATCH = 64
LEVERS: dict[str, tuple[Callable[[], Any], float]] = {
    "Concentrate": (lambda: Concentrate(0.1), 1.03),
    "Concentrate by layer": (lambda: Concentrate(0.1, "layer"), 1.03),
    "ProximalL1": (lambda: ProximalL1(1e-4), 1.03),
    "EMA": (EMA, 1.03),
    "MeanWeights": (lambda: MeanWeights(start=0), 1.03),
}


def step_of(model: nn.Module, lever: Any | None) -> Callable[[], Any]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    if lever is not None:
        trimtab.attach(optimizer, lever, model=model)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = models.create(name, num_classes=10)
    rows = []
    for label, (make, bar) in LEVERS.items():
        ratio, least = cpu_ratio_in_turns(step_of(model, None), step_of(model, make()), repeats)
        rows.append(
            {
                "question": f"{name}, batch {BATCH}: step with {label} / plain SGD step",
                "ratio": ratio,
                "bar": f"<= {bar:g}",
                "met": ratio <= bar,
                "ratio_of_least": least,
            }
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    record("step_after", measure("resnet20", repeats=30) + measure("resnet18", repeats=8))

"""A training step of the small GPT with the operands of its products in few bits, against the plain step; one core."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import cpu_ratio_in_turns, record
from torch.nn import functional as F

import trimtab
from trimtab.models.gpt import ByteGPT
from trimtab.precision import LowPrecision

LENGTH, BATCH = 128, 16
RECIPES = ("bf16-operands", "mxfp8", "mxfp4", "fp8-deepseek", "nvfp4")


def training_step(recipe: str | None) -> Callable[[], Any]:
    """A step of AdamW on bytes."""
    torch.manual_seed(0)
    model = ByteGPT(256, LENGTH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, foreach=True)
    if recipe is not None:
        trimtab.attach(optimizer, LowPrecision(matmul=recipe), model=model)
    text = torch.randint(0, 256, (BATCH, LENGTH + 1))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def main() -> None:
    """Each recipe in turns with the plain step."""
    torch.set_num_threads(1)
    plain, rows = training_step(None), []
    for recipe in RECIPES:
        ratio = cpu_ratio_in_turns(plain, training_step(recipe), repeats=3)[0]
        bar = {"bar": "<= 3", "met": ratio <= 3} if recipe == "nvfp4" else {"bar": "none: reported as it is"}
        rows.append({"question": f"GPT, a step with matmul={recipe} / the plain step, CPU time", "ratio": ratio, **bar})
    record("step_products", rows)


if __name__ == "__main__":
    main()

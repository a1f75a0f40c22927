"""A step of DiffGrad, AdamP, SGDP and Fira against `torch.optim.AdamW(foreach=True)`, on many small and few big tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gradient_transforms import SETS, parameters
from harness import cpu_ratio_in_turns, record
from torch import nn

from trimtab.optimizers import SGDP, AdamP, DiffGrad, Fira

BAR = 1.5
OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "DiffGrad": lambda held: DiffGrad(held, lr=1e-6),
    "AdamP": lambda held: AdamP(held, lr=1e-6),
    "SGDP": lambda held: SGDP(held, lr=1e-6, momentum=0.9),
    "Fira, rank 128": lambda held: Fira(held, lr=1e-6, rank=128, update_gap=10_000, projection="randomized"),
}
PROJECTING = ("AdamP", "SGDP")


def perpendicular(held: list[nn.Parameter]) -> list[nn.Parameter]:
    """Gradients without their part along each output row of the weight, so that every step is projected."""
    with torch.no_grad():
        for parameter in held:
            weight, gradient = parameter.flatten(1), parameter.grad.flatten(1)  # type: ignore[union-attr]
            along = (weight * gradient).sum(1, keepdim=True) / weight.square().sum(1, keepdim=True)
            parameter.grad = (gradient - along * weight).view_as(parameter)
    return held


def measure(name: str, make: Callable[[list[nn.Parameter]], torch.optim.Optimizer], *, projecting: bool) -> float:
    """The ratio of a step's CPU time to AdamW's; the gradients stay as they are and the rate is tiny, so steps are alike."""
    held = parameters(name)
    other = parameters(name)
    if projecting:
        held, other = perpendicular(held), perpendicular(other)
    plain = torch.optim.AdamW(other, lr=1e-6, weight_decay=0.0, foreach=True)
    before = [parameter.detach().clone() for parameter in held]
    found, _ = cpu_ratio_in_turns(plain.step, make(held).step, repeats=15)
    assert all(not torch.equal(one, two) for one, two in zip(held, before, strict=True))
    return found


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name in SETS:
        for label, make in OPTIMIZERS.items():
            for projecting in (False, True) if label in PROJECTING else (False,):
                ratio = measure(name, make, projecting=projecting)
                what = f"{label}, every step projected" if projecting else label
                question = f"{name}: step of {what} / AdamW (foreach), CPU time"
                rows.append({"question": question, "ratio": ratio, "bar": f"<= {BAR}", "met": ratio <= BAR})
    record("plain_optimizers", rows)


if __name__ == "__main__":
    main()

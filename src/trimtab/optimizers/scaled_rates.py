"""Learning rates multiplied for a single step, and the loop's own again after it."""

from __future__ import annotations

from typing import Any

import torch


class ScaledRates:
    """The rates of an optimizer's groups, scaled between `scale` and `restore`, so that schedules never meet the factor.

    Example:
        >>> optimizer, rates = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5), ScaledRates()
        >>> rates.scale(optimizer, 0.1); optimizer.param_groups[0]["lr"]
        0.05
        >>> rates.restore(); optimizer.param_groups[0]["lr"]
        0.5
    """

    def __init__(self) -> None:
        self._kept: list[tuple[dict[str, Any], Any]] = []

    def scale(self, optimizer: torch.optim.Optimizer | None, factor: float) -> None:
        """Multiply the rates; those of a step that failed are put back first."""
        self.restore()
        if factor == 1 or optimizer is None:
            return
        self._kept = [(group, group["lr"]) for group in optimizer.param_groups]
        for group, rate in self._kept:
            group["lr"] = rate * factor

    def restore(self) -> None:
        """The rates as they were."""
        for group, rate in self._kept:
            group["lr"] = rate
        self._kept = []

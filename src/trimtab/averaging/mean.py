"""MeanWeights: the plain mean of the weights over the last part of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import get_swa_multi_avg_fn

from trimtab.averaging.base import Buffers, Update, WeightAverage
from trimtab.checks import below_one, whole
from trimtab.parameters import Entry


class MeanWeights(WeightAverage):
    """The mean of the weights after the steps `start * total_steps + 1`, and every `every`-th from there; put in at the end.

    Stochastic weight averaging with the run's own learning rates: the paper keeps a constant or cyclic rate while it
    averages, a cosine near zero leaves little to average (`--schedule.name constant`, or an earlier start).

    Args:
        start: share of the run without averaging, in [0, 1). Default 0.75 (the paper's 75 %).
        every: steps from one that counts to the next. Default 1 [ours]; the paper averages once per epoch.
        buffers: "recalibrate" (default, as the paper): estimate BatchNorm's statistics anew at the end; "average": average
            floating-point buffers too.
        total_steps: optimizer steps of the whole run; a run gives it. Not needed with start=0.

    Raises:
        ValueError: a start outside [0, 1), every below 1, an unknown word for the buffers; (at attach) a start above 0
            without total_steps, or buffers to average and no model.

    Source: Izmailov et al. 2018, arXiv 1803.05407.

    Example:
        >>> import torch, trimtab
        >>> weight = torch.nn.Parameter(torch.tensor([0.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> handle = trimtab.attach(optimizer, MeanWeights(start=0.5, total_steps=4))
        >>> for _ in range(4):
        ...     weight.grad = -torch.ones(1)
        ...     optimizer.step()
        >>> handle.finish()  # True: BatchNorm's statistics are of other weights
        True
        >>> weight.item()
        3.5
    """

    def __init__(
        self, start: float = 0.75, every: int = 1, buffers: Buffers = "recalibrate", total_steps: int | None = None
    ) -> None:
        super().__init__(buffers)
        self.start = below_one("start", start)
        self.every = whole("every", every, 1)
        self.total_steps = None if total_steps is None else whole("total_steps", total_steps, 1)
        self.steps = 0

    def settings(self) -> dict[str, Any]:
        """Start, stride and, where it was given, the length of the run."""
        own = {"start": self.start, "every": self.every}
        return own if self.total_steps is None else {**own, "total_steps": self.total_steps}

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """As every average, and refuse a start that cannot be found."""
        if self.start and self.total_steps is None:
            raise ValueError(
                f"total_steps must be given with start={self.start:g}, which is a share of the run; or use start=0"
            )
        super().bind(optimizer, model, parameters)

    def update(self) -> Update | None:
        """torch's, where the step counts."""
        self.steps += 1
        waiting = math.floor(self.start * (self.total_steps or 0))
        counts = self.steps > waiting and (self.steps - waiting - 1) % self.every == 0
        found: Update | None = get_swa_multi_avg_fn() if counts else None  # type: ignore[no-untyped-call]
        return found

    def state_dict(self) -> dict[str, Any]:
        """As every average, and the steps taken."""
        return {**super().state_dict(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As every average, and the steps taken."""
        super().load_state_dict({name: value for name, value in state.items() if name != "steps"})
        self.steps = int(state["steps"])

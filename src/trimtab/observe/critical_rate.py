"""The critical learning rate: the smallest step along an update that raises the loss, by forward passes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

FORWARDS = 6
"""Forward passes at most: one before the update, one after it, four to bracket the crossing."""


@dataclass(frozen=True)
class Critical:
    """Where the loss along an update comes back to its value before it.

    Attributes:
        factor: in units of the update that was taken; below 1 the step itself raised the loss.
        forwards: how many were spent.
        open: 0 where the crossing was bracketed; 1 where the loss is lower up to the farthest point looked at, so that the
            factor is at least this; -1 where it is higher from the nearest on, so that the factor is at most this.
    """

    factor: float
    forwards: int
    open: Literal[-1, 0, 1]


def critical_factor(loss_at: Callable[[float], float]) -> Critical:
    """Search the smallest s > 0 with `L(w + s d) > L(w)`, d the update that was taken: at 1, 2, 4, 8, 16 or 1, 1/2, ..., 1/16.

    Between the last point that does not raise the loss and the first that does, the mean slope `(L(s) - L(0)) / s` is taken as
    linear in s, which is exact on a quadratic: for plain gradient descent on `(c/2) x^2` the critical learning rate, the
    factor times the step's, is `2 / c`. Where the loss is not finite at the upper point, the middle. The quantity is that of
    arXiv 2406.09405; points and interpolation are ours.

    Args:
        loss_at: gives the loss at s times the update; called with 0 first, at most 6 times.

    Raises:
        ValueError: the loss before the update is not finite.

    Example:
        >>> critical_factor(lambda s: (1 - 0.5 * s) ** 2).factor  # half of the way in one step: four steps lead back
        4.0
    """
    before = loss_at(0.0)
    if not math.isfinite(before):
        raise ValueError(f"the loss before the update is {before}, so nothing can be said of the step")
    rises = [(1.0, loss_at(1.0) - before)]
    up = _rose(rises[0][1])
    while len(rises) < FORWARDS - 1 and _rose(rises[-1][1]) == up:
        s = rises[-1][0] * (0.5 if up else 2.0)
        rises.append((s, loss_at(s) - before))
    spent = len(rises) + 1
    if _rose(rises[-1][1]) == up:
        return Critical(rises[-1][0], spent, -1 if up else 1)
    (low, below), (high, above) = sorted(rises[-2:])
    slopes = below / low, above / high
    share = -slopes[0] / (slopes[1] - slopes[0]) if math.isfinite(above) else 0.5
    return Critical(low + (high - low) * share, spent, 0)


def _rose(rise: float) -> bool:
    """Whether the loss is higher than before; one that is not finite is."""
    return not rise <= 0

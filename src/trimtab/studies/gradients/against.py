"""Gradients of one method against another's: the variance of each layer and of all, paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.studies.statistics import Estimate, estimate, paired_difference
from trimtab.studies.summary import Dynamics

FEWEST = 3
"""Seeds from which an interval is Student's t; of fewer it is what was seen, from the least to the greatest [ours]."""


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios over seeds with its ends: a 95 % t interval, or the least and greatest of two seeds.

    Attributes:
        value: geometric mean.
        low, high: ends; None with one seed.
        seeds: how many.
        certain: whether a t interval excludes one; never with fewer than three seeds.
    """

    value: float
    low: float | None
    high: float | None
    seeds: int
    certain: bool


def ends(values: Sequence[float]) -> tuple[float, float] | None:
    """Ends of what is drawn around a mean: Student's 95 % t interval, least and greatest of two values, None of one.

    Example:
        >>> ends([1.0]), ends([1.0, 3.0]), [round(end, 2) for end in ends([1.0, 2.0, 3.0])]
        (None, (1.0, 3.0), [-0.48, 4.48])
    """
    if len(values) < 2:
        return None
    if len(values) < FEWEST:
        return min(values), max(values)
    found = estimate(values)
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high


def _last(run: Dynamics) -> float | None:
    """Variance of all tracked gradients together, median of the points of the last tenth."""
    kept = [value for value in run.std[-max(1, len(run.std) // 10) :] if value]
    return sorted(kept)[len(kept) // 2] ** 2 if kept else None


def _layer(name: str) -> Callable[[Dynamics], float | None]:
    def variance(run: Dynamics) -> float | None:
        last = next((layer.last for layer in run.layers if layer.name == name), None)
        return last**2 if last else None

    return variance


def _ratio(
    own: Sequence[Dynamics], base: Sequence[Dynamics], value: Callable[[Dynamics], float | None]
) -> Ratio | None:
    logs = [
        [(run.seed, math.log(variance)) for run in runs if (variance := value(run)) is not None and variance > 0]
        for runs in (own, base)
    ]
    found: Estimate | None = paired_difference(logs[0], logs[1])
    if found is None:
        return None
    others = dict(logs[1])
    around = ends([one - others[seed] for seed, one in logs[0] if seed in others])
    low, high = (None, None) if around is None else (math.exp(around[0]), math.exp(around[1]))
    return Ratio(math.exp(found.mean), low, high, found.n, found.n >= FEWEST and found.excludes_zero)


def variance_ratio(own: Sequence[Dynamics], base: Sequence[Dynamics], layer: str | None = None) -> Ratio | None:
    """Variance of the gradient in the last tenth of the tracked steps over that of the baseline's runs of the same seeds.

    Args:
        own, base: runs of the two methods.
        layer: of one layer; None for all tracked gradients together.
    """
    return _ratio(own, base, _last if layer is None else _layer(layer))


def spread_ratio(own: Sequence[Dynamics], base: Sequence[Dynamics]) -> Ratio | None:
    """How much more the layers differ than the baseline's: largest over smallest standard deviation, as a ratio."""
    return _ratio(own, base, lambda run: run.facts.heterogeneity)

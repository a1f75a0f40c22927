"""Which layers of a deep network to leave out (AmoebaLLM, Fu et al. 2024, arXiv 2411.10606)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from trimtab.checks import flag, whole
from trimtab.frames import Tabular


@dataclass(frozen=True, repr=False)
class DepthPlan(Tabular):
    """What `depth_plan` found.

    Attributes:
        active: for each number of removed layers, 0 to `remove`, whether each layer stays.
        metric: the measure of each, lower is better.
        calls: how often it was measured.
    """

    active: tuple[tuple[bool, ...], ...]
    metric: tuple[float, ...]
    calls: int

    def removed(self, count: int) -> list[int]:
        """The places of the layers that go when `count` of them go."""
        whole("count", count, 0, len(self.active) - 1)
        return [place for place, stays in enumerate(self.active[count]) if not stays]

    def records(self) -> list[dict[str, Any]]:
        """One per number of removed layers: `removed`, `metric`, `layers`."""
        return [
            {"removed": count, "metric": metric, "layers": ", ".join(map(str, self.removed(count)))}
            for count, metric in enumerate(self.metric)
        ]

    def _title(self) -> str:
        return repr(self)

    def __repr__(self) -> str:
        return (
            f"DepthPlan({len(self.active[0])} layers, up to {len(self.active) - 1} removed; {self.calls} measurements)"
        )


def depth_plan(
    layers: int,
    metric: Callable[[tuple[bool, ...]], float],
    remove: int,
    keep_last: int = 1,
    *,
    exhaustive: bool = False,
) -> DepthPlan:
    """Choose which `remove` of `layers` layers to leave out by dynamic programming over what is measured.

    Formula: layers are taken one by one, the last first. With n of them seen and m removed, either the plan of (n - 1, m) is
    inherited, or the n-th goes on top of the plan of (n - 1, m - 1), and this is measured; the lower metric stays, a tie
    inherits. About `layers * remove` measurements instead of all choices.

    This is the best choice where effects add up. Where layers make up for each other it is a greedy one, as published;
    `exhaustive=True` measures every choice, for few layers.

    Args:
        layers: how many there are.
        metric: takes whether each layer stays, gives a number, lower is better (a validation loss with those skipped).
        remove: at most so many go; every smaller number is planned as well.
        keep_last: so many layers at the end always stay. Default 1 (paper).
        exhaustive: measure all choices.

    Raises:
        ValueError: a number out of range, more layers to remove than may go, or a metric that is NaN (with its layers).

    Reference:
        Fu et al., AmoebaLLM: Constructing Any-Shape Large Language Models, arXiv 2411.10606.

    Example:
        >>> costs = [5.0, 1.0, 4.0, 2.0, 3.0]
        >>> plan = depth_plan(5, lambda active: sum(c for c, stays in zip(costs, active) if not stays), 2)
        >>> plan.removed(2), plan.metric[2]
        ([1, 3], 3.0)
    """
    whole("layers", layers, 1)
    whole("keep_last", keep_last, 0, layers)
    whole("remove", remove, 0, layers - keep_last)
    flag("exhaustive", exhaustive)
    known: dict[tuple[bool, ...], float] = {}

    def measured(active: tuple[bool, ...]) -> float:
        if active not in known:
            known[active] = float(metric(active))
            if math.isnan(known[active]):
                gone = [place for place, stays in enumerate(active) if not stays]
                raise ValueError(f"the metric is NaN without the layers {gone}")
        return known[active]

    def without(gone: tuple[int, ...]) -> tuple[bool, ...]:
        return tuple(place not in gone for place in range(layers))

    free = range(layers - keep_last)
    if exhaustive:
        best = [min((without(gone) for gone in combinations(free, count)), key=measured) for count in range(remove + 1)]
    else:
        best = [without(())]
        for place in reversed(free):  # `best` holds the plans of the layers behind it
            grown = best[: remove + 1]
            for count in range(min(len(best), remove), 0, -1):
                tried = tuple(stays and at != place for at, stays in enumerate(best[count - 1]))
                if count == len(best):
                    measured(tried)
                    grown = [*best, tried]
                elif measured(tried) < measured(best[count]):
                    grown[count] = tried
            best = grown
    return DepthPlan(tuple(best), tuple(measured(active) for active in best), len(known))

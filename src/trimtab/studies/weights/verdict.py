"""How far each method can be pruned before it falls behind the dense baseline, and what that costs: what a study decides."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from trimtab.runs.metric import METRICS, Metric
from trimtab.studies.statistics import Entry, Estimate, paired_difference, sparsity_label

ACCURACY = METRICS["accuracy"]


@dataclass(frozen=True)
class Held:
    """How far one method's networks stay within a margin of the dense baseline.

    Attributes:
        method: its label.
        sparsity: the highest measured sparsity to which every mean stays within the margin; None where not even the dense
            network does.
        certain: the same for the whole 95 % interval of the difference paired over seeds; None where none does, or with one
            seed.
        mean: at `sparsity`; of the dense network where that is None.
        beyond: mean quality of all its pruned networks, which orders methods that reach as far.
        dense: dense network minus the baseline's, paired over seeds; None for the baseline itself.
        step: time of a training step relative to the plain optimizer's, where it was measured.
        metric: what the qualities are.
    """

    method: str
    sparsity: float | None
    certain: float | None
    mean: float
    beyond: float
    dense: Estimate | None
    step: float | None
    metric: Metric = ACCURACY

    @property
    def dense_cost(self) -> float | None:
        """How much worse the dense network is than the baseline's, where that is certain or above one point."""
        if self.dense is None:
            return None
        lost = -self.metric.gain(self.dense.mean)
        return lost if lost > 0 and (self.dense.excludes_zero or lost >= self.metric.costly) else None


def _reach(points: Sequence[tuple[float, bool]]) -> float | None:
    """The last sparsity before the first that does not hold."""
    reached = None
    for sparsity, holds in sorted(points):
        if not holds:
            break
        reached = sparsity
    return reached


def held(
    entries: Sequence[Entry],
    baseline: str,
    steps: Mapping[str, float],
    margin: float | None = None,
    metric: Metric = ACCURACY,
) -> list[Held]:
    """Each method of one state, the farthest first; of two that reach as far, the one that keeps more over all sparsities.

    Args:
        entries: of one state, one score and scope.
        baseline: whose dense network is held.
        steps: time of a step by method.
        margin: how much worse than it still counts. Default the metric's: 2 points, 0.05 bits per byte [ours].
        metric: what the qualities are, and which way is better.

    Returns:
        Nothing where the baseline's dense network was not measured.

    Example:
        >>> from trimtab.studies.statistics import table
        >>> from trimtab.studies.summary import Row
        >>> def row(method, sparsity, accuracy):
        ...     return Row(method=method, seed=0, sparsity=sparsity, sparsity_total=sparsity, recalibrated=True,
        ...                accuracy=accuracy, loss=1.0)
        >>> rows = [row("sgd", 0, 0.90), row("sgd", 0.8, 0.85), row("var", 0, 0.90), row("var", 0.8, 0.89)]
        >>> [(one.method, one.sparsity) for one in held(table(rows), "sgd", {})]
        [('var', 0.8), ('sgd', 0.0)]
    """
    reference = next((entry for entry in entries if entry.method == baseline and entry.sparsity == 0), None)
    if reference is None:
        return []
    margin = metric.margin if margin is None else margin
    found = []
    for method in dict.fromkeys(entry.method for entry in entries):
        own = [entry for entry in entries if entry.method == method]
        paired = {entry.sparsity: paired_difference(entry.values, reference.values) for entry in own}
        reach = _reach([(entry.sparsity, metric.gain(entry.mean - reference.mean) >= -margin) for entry in own])
        certain = _reach(
            [
                (sparsity, difference is not None and _worst(difference, metric) >= -margin)
                for sparsity, difference in paired.items()
                if sparsity > 0
            ]
        )
        at = next((entry for entry in own if entry.sparsity == (reach or 0.0)), own[0])
        dense = paired.get(0.0) if method != baseline else None
        pruned = [entry.mean for entry in own if entry.sparsity > 0] or [at.mean]
        beyond = sum(pruned) / len(pruned)
        found.append(Held(method, reach, certain, at.mean, beyond, dense, steps.get(method), metric))
    return sorted(
        found,
        key=lambda one: (-1.0 if one.sparsity is None else one.sparsity, metric.gain(one.beyond)),
        reverse=True,
    )


def _worst(difference: Estimate, metric: Metric) -> float:
    """The end of the interval where it is worst, as a gain; minus infinity without an interval."""
    ends = [metric.gain(end) for end in (difference.low, difference.high) if end is not None]
    return min(ends, default=-math.inf)


def best_and_baseline(found: Sequence[Held], baseline: str, most: int = 3) -> list[Held]:
    """The `most` methods that reach farthest, and the baseline behind them where it is not among them."""
    best = list(found[:most])
    return best + [one for one in found[most:] if one.method == baseline]


def place(one: Held) -> str:
    """How far, in two or three words.

    Example:
        >>> place(Held("sgd", 0.95, None, 0.9, 0.8, None, None)), place(Held("l1", None, None, 0.8, 0.7, None, None))
        ('to 95 %', 'not even dense')
    """
    if one.sparsity is None:
        return "not even dense"
    return "dense only" if one.sparsity == 0 else f"to {sparsity_label(one.sparsity)}"


def cost_words(one: Held) -> str:
    """What a method costs: time of a step, quality of its dense network; for a method without either, nothing."""
    parts = [] if one.step is None else [f"a step takes {one.step:.2f}x"]
    if one.dense_cost is not None:
        parts.append(f"costs {one.metric.change(one.dense_cost, signed=False)} dense")
    return "; ".join(parts)


def _joined(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def verdict_words(
    found: Sequence[Held],
    entries: Sequence[Entry],
    baseline: str,
    metric: Metric = ACCURACY,
    point: float | None = None,
) -> str:
    """The verdict in two or three sentences.

    How far the best three and the baseline hold the dense baseline; who keeps most at the highest sparsity that is borne at
    all; what those that are named lose dense.

    Args:
        found: as `held` gives them.
        entries: of the same state.
        baseline: what the others are compared with.
        metric: what the qualities are.
        point: the sparsity of the second sentence; without one there is none.
    """
    means = {(entry.method, entry.sparsity): entry.mean for entry in entries}
    named = best_and_baseline(found, baseline)
    lead = (
        f"Within {metric.scale * metric.margin:g} {metric.unit} of the dense baseline ({baseline}, "
        f"{metric.phrase(means[baseline, 0.0])})"
    )
    groups: dict[str, list[str]] = {}
    for one in named:
        groups.setdefault(place(one), []).append(one.method)
    if any(one.sparsity for one in found):
        text = f"{lead}: " + ", ".join(f"{_joined(names)} {where}" for where, names in groups.items()) + "."
    else:
        text = f"{lead} no method bears any sparsity measured."
    there = {method: mean for (method, sparsity), mean in means.items() if sparsity == point}
    if point is not None and there:
        best = max(there, key=lambda method: metric.gain(there[method]))
        text += f" At {sparsity_label(point)}, {best} keeps {metric.text(there[best])}"
        text += f", {baseline} {metric.text(there[baseline])}." if best != baseline and baseline in there else "."
        if best not in {one.method for one in named}:
            named = [*named, *(one for one in found if one.method == best)]
    lossy = [
        f"{one.method} costs {metric.change(one.dense_cost, signed=False)}"
        for one in named
        if one.dense_cost is not None
    ]
    return text + (f" Dense, {_joined(lossy)}." if lossy else "")

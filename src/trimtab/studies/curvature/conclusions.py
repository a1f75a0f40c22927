"""What the measured networks say together: ratios between methods, and whether flatter goes with more robust to pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trimtab.studies.curvature.records import CurvatureRow, PrunedAccuracy
from trimtab.studies.statistics import Estimate, paired_difference, sparsity_label

RESAMPLES = 4000
LEAST_METHODS = 4

MEASURES: dict[str, tuple[str, Callable[[CurvatureRow], float]]] = {
    "eigenvalue": ("largest eigenvalue", lambda row: row.eigenvalues[0]),
    "trace": ("trace", lambda row: row.trace),
    "sharpness": ("SAM sharpness", lambda row: row.sharpness),
    "adaptive_sharpness": ("adaptive sharpness", lambda row: row.adaptive_sharpness),
    "normalized_eigenvalue": ("largest eigenvalue x ||w||\u00b2", lambda row: row.normalized_eigenvalue),
    "normalized_trace": ("trace x ||w||\u00b2 / n", lambda row: row.normalized_trace),
}
"""The measures that are compared: the first three change with the scale of the weights, the others are relative to it."""

SCALE_FREE = ("adaptive_sharpness", "normalized_eigenvalue", "normalized_trace")


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's rank correlation over networks of several methods.

    Attributes:
        value: in [-1, 1].
        low, high: ends of the 95 % interval over methods; None with fewer than four methods.
        networks: how many pairs.
        methods: how many methods they are of.
    """

    value: float
    low: float | None
    high: float | None
    networks: int
    methods: int

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies on one side of zero; False without one."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def _spearman(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Along the last axis; NaN where one side is constant."""
    from scipy.stats import rankdata

    ranks = [rankdata(values, axis=-1) for values in (x, y)]
    one, other = (values - values.mean(-1, keepdims=True) for values in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        found: NDArray[np.float64] = (one * other).sum(-1) / np.sqrt((one**2).sum(-1) * (other**2).sum(-1))
    return found


def rank_correlation_over_methods(
    points: Sequence[tuple[str, float, float]], seed: int = 0, resamples: int = RESAMPLES
) -> RankCorrelation | None:
    """Spearman's correlation of x and y, with an interval from resampling whole methods.

    Seeds of one method are not independent evidence on a relation between methods, so the bootstrap draws methods with
    replacement, each with all of its seeds (a cluster bootstrap, percentiles) [ours]. In a resample methods with fewer
    seeds than others have theirs repeated.

    Args:
        points: (method, x, y) of each network.
        seed: of the resampling.
        resamples: how many.

    Returns:
        None for fewer than three points, or when all x or all y are equal.

    Example:
        >>> points = [(method, x, -x) for x, method in enumerate("abcde")]
        >>> found = rank_correlation_over_methods(points)
        >>> found.value, found.low, found.high
        (-1.0, -1.0, -1.0)
    """
    if len(points) < 3:
        return None
    x, y = (np.array([point[at] for point in points], dtype=np.float64) for at in (1, 2))
    value = float(_spearman(x, y))
    if math.isnan(value):
        return None
    names = list(dict.fromkeys(point[0] for point in points))
    members = [np.array([at for at, point in enumerate(points) if point[0] == name]) for name in names]
    low = high = None
    if len(names) >= LEAST_METHODS:
        draws = np.random.default_rng(seed).integers(len(names), size=(resamples, len(names)))
        size = max(
            map(len, members)
        )  # methods with fewer seeds have theirs repeated, so that resamples are equally long
        table = np.stack([np.resize(own, size) for own in members])
        chosen = table[draws].reshape(resamples, -1)
        found = _spearman(x[chosen], y[chosen])
        low, high = (float(end) for end in np.nanpercentile(found, [2.5, 97.5]))
    return RankCorrelation(round(value, 12), low, high, len(points), len(names))


@dataclass(frozen=True)
class Robustness:
    """How a measure of the dense networks goes with the accuracy that pruning leaves them.

    Attributes:
        measure: key of `MEASURES`.
        sparsity: what the networks were pruned to.
        kept: rank correlation with accuracy pruned minus accuracy dense.
        accuracy: rank correlation with accuracy pruned.
    """

    measure: str
    sparsity: float
    kept: RankCorrelation
    accuracy: RankCorrelation


def robustness(rows: Sequence[CurvatureRow], pruned: Sequence[PrunedAccuracy] = ()) -> list[Robustness]:
    """Every measure of the dense networks against accuracy at every sparsity known, over methods and seeds.

    Args:
        rows: measured networks.
        pruned: what pruning left, also at sparsities whose curvature was not measured.
    """
    dense = {(row.method, row.seed): row for row in rows if row.sparsity == 0}
    left_over = {(one.method, one.seed, round(one.sparsity, 4)): one.accuracy for one in pruned}
    left_over |= {(row.method, row.seed, round(row.sparsity, 4)): row.accuracy for row in rows if row.sparsity}
    found = []
    for sparsity in sorted({place[2] for place in left_over}):
        pairs = [
            (dense[method, seed], accuracy)
            for (method, seed, at), accuracy in left_over.items()
            if at == sparsity and (method, seed) in dense
        ]
        for name, (_, value) in MEASURES.items():
            kept = rank_correlation_over_methods([(d.method, value(d), accuracy - d.accuracy) for d, accuracy in pairs])
            left = rank_correlation_over_methods([(d.method, value(d), accuracy) for d, accuracy in pairs])
            if kept is not None and left is not None:
                found.append(Robustness(name, sparsity, kept, left))
    return found


def ratio_to(
    rows: Sequence[CurvatureRow], method: str, baseline: str, measure: str, sparsity: float
) -> Estimate | None:
    """Natural logarithm of a measure of `method` over that of `baseline`, paired over seeds; None where one is not positive.

    Example: `exp(mean)` is the geometric mean of the ratios; an interval that excludes zero excludes a ratio of one.
    """
    value = MEASURES[measure][1]
    logs: dict[str, list[tuple[int, float]]] = {method: [], baseline: []}
    for row in rows:
        if row.sparsity == sparsity and row.method in logs:
            if value(row) <= 0:
                return None
            logs[row.method].append((row.seed, math.log(value(row))))
    return paired_difference(logs[method], logs[baseline])


def _written(value: float) -> str:
    """Three digits, written out up to a million."""
    return f"{float(f'{value:.3g}'):,.10g}" if 1e-3 <= abs(value) < 1e6 else f"{value:.3g}"


def curvature_headline(rows: Sequence[CurvatureRow], pruned: Sequence[PrunedAccuracy] = ()) -> str:
    """One sentence or two on the dense networks: which is flattest, and whether flatness goes with robustness.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("there is no measured network to speak of")
    least = min(row.sparsity for row in rows)
    own = [row for row in rows if row.sparsity == least]
    state = "dense" if least == 0 else f"{sparsity_label(least)} sparse"
    methods = list(dict.fromkeys(row.method for row in own))
    parts = []
    for name in ("eigenvalue", "adaptive_sharpness"):
        text, value = MEASURES[name]
        means = {m: float(np.mean([value(row) for row in own if row.method == m])) for m in methods}
        ends = sorted(means, key=lambda method: means[method])
        if len(ends) == 1:
            parts.append(f"{text} {_written(means[ends[0]])}")
        else:
            low, high = (f"{_written(means[end])} ({end})" for end in (ends[0], ends[-1]))
            parts.append(f"{text} from {low} to {high}")
    networks = f"{len(own)} {state} network{'s' if len(own) > 1 else ''}"
    sentence = f"{networks}: {'; '.join(parts)}."
    related = [item for item in robustness(rows, pruned) if item.measure == "adaptive_sharpness"]
    sure = [item for item in related if item.kept.excludes_zero]
    if related and all(item.kept.low is None for item in related):
        return sentence
    if sure:
        listed = ", ".join(
            f"{item.kept.value:+.2f} ({item.kept.low:+.2f} to {item.kept.high:+.2f}) at {sparsity_label(item.sparsity)}"
            for item in sure
        )
        sentence += f" Rank correlation of adaptive sharpness with the accuracy that pruning leaves: {listed}."
    elif related:
        sentence += " No rank correlation of adaptive sharpness with what pruning leaves whose interval excludes zero."
    return sentence.replace(" -", " \N{MINUS SIGN}").replace("(-", "(\N{MINUS SIGN}")

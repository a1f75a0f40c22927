"""Mean, spread and interval over seeds; differences paired over seeds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeVar

from trimtab.checks import number


class Row(Protocol):
    """What a row of a summary has and this file needs."""

    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def seed(self) -> int: ...  # noqa: D102
    @property
    def sparsity(self) -> float: ...  # noqa: D102
    @property
    def score(self) -> str: ...  # noqa: D102
    @property
    def scope(self) -> str: ...  # noqa: D102
    @property
    def recalibrated(self) -> bool: ...  # noqa: D102
    @property
    def finetuned(self) -> int: ...  # noqa: D102
    @property
    def split(self) -> str: ...  # noqa: D102
    @property
    def file_bytes(self) -> int | None: ...  # noqa: D102


R = TypeVar("R", bound=Row)
Field = Literal["accuracy", "top5", "iou", "loss", "bits_per_byte", "perplexity"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """Mean of `n` values with Student's t interval; with one value there is no spread and no interval.

    Attributes:
        n: how many values.
        mean: arithmetic mean.
        std: sample standard deviation, divisor n - 1; None for one value.
        low, high: ends of the interval for the mean; None for one value.
    """

    n: int
    mean: float
    std: float | None
    low: float | None
    high: float | None

    @property
    def half(self) -> float | None:
        """Half the width of the interval, None for one value."""
        return None if self.high is None else self.high - self.mean

    @property
    def excludes_zero(self) -> bool:
        """Whether the interval lies wholly on one side of zero; False for one value."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Entry(Estimate):
    """One method at one operating point, over its seeds.

    Attributes:
        method, sparsity, score, scope, recalibrated, finetuned, split: as in `Row`; the sparsity is rounded to six digits.
        values: (seed, value) of each seed, in order of the seeds.
        to_dense: difference to the same method's dense network in the same state, paired over seeds; None without one.
    """

    method: str
    sparsity: float
    score: str
    scope: str
    recalibrated: bool
    finetuned: int
    split: str
    values: tuple[tuple[int, float], ...]
    to_dense: Estimate | None


def estimate(values: Iterable[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and two-sided t interval of independent values.

    `mean +- t(n - 1, (1 + confidence) / 2) * std / sqrt(n)`, std with divisor n - 1.

    Args:
        values: at least one finite number.
        confidence: coverage in (0, 1). Default 0.95, the field's custom.

    Raises:
        ValueError: no value, a value that is not finite, or a confidence outside (0, 1).

    Example:
        >>> found = estimate([0.80, 0.82, 0.84])
        >>> round(found.mean, 3), round(found.std, 3), round(found.half, 4)
        (0.82, 0.02, 0.0497)
        >>> estimate([0.8]).low is None
        True
    """
    numbers = [number("a value", float(value)) for value in values]
    if not numbers:
        raise ValueError("an estimate needs at least one value, got none")
    number("confidence", confidence, above=0, below=1)
    n = len(numbers)
    mean = math.fsum(numbers) / n
    if n == 1:
        return Estimate(1, mean, None, None, None)
    from scipy import stats

    std = math.sqrt(math.fsum((number - mean) ** 2 for number in numbers) / (n - 1))
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * std / math.sqrt(n)
    return Estimate(n, mean, std, mean - half, mean + half)


def paired_difference(
    own: Iterable[tuple[int, float]], other: Iterable[tuple[int, float]], confidence: float = CONFIDENCE
) -> Estimate | None:
    """Estimate of `own - other` over the seeds that both have; None when they share none.

    Example:
        >>> paired_difference([(0, 0.9), (1, 0.8)], [(1, 0.7), (0, 0.6), (2, 0.5)]).n
        2
    """
    reference = dict(other)
    differences = [value - reference[seed] for seed, value in own if seed in reference]
    return estimate(differences, confidence) if differences else None


Point = tuple[str, float, str, str, bool, int, str]


def spearman(one: Sequence[float], other: Sequence[float], least: int = 3) -> float | None:
    """Spearman's rank correlation, ties sharing the mean of their ranks; None of fewer than `least` pairs or of constants.

    Example:
        >>> spearman([1, 2, 3, 9], [0, 1, 5, 6]), spearman([1, 1, 1], [1, 2, 3]) is None
        (1.0, True)
    """
    from scipy.stats import spearmanr

    if len(one) < least or any(min(values) == max(values) for values in (one, other)):
        return None
    return float(spearmanr(one, other).statistic)


def _grouped(rows: Sequence[Row], field: Field) -> dict[Point, dict[int, float]]:
    """Values by operating point, then by seed."""
    groups: dict[Point, dict[int, float]] = {}
    for row in rows:
        value = getattr(row, field)
        if value is None:
            continue
        point = (row.method, round(row.sparsity, 6), row.score, row.scope, row.recalibrated, row.finetuned, row.split)
        group = groups.setdefault(point, {})
        if row.seed in group:
            raise ValueError(
                f"two rows for {row.method!r} seed {row.seed} at sparsity {row.sparsity:g}, {row.score}/{row.scope}, "
                f"recalibrated={row.recalibrated}, {row.split}: the same network was measured twice"
            )
        if not math.isfinite(value):
            raise ValueError(
                f"{field} must be finite, got {value} for {row.method!r} seed {row.seed} at sparsity {row.sparsity:g}"
            )
        group[row.seed] = float(value)
    return groups


def table(rows: Sequence[Row], *, field: Field = "accuracy", confidence: float = CONFIDENCE) -> list[Entry]:
    """Aggregate rows over seeds: one `Entry` per method, sparsity, score, scope, state and split.

    Methods stay in order of first appearance, as do (score, scope) pairs; within them states, then sparsities, ascend.

    Args:
        rows: as in a summary.
        field: which number of the row; rows where it is None are left out.
        confidence: of the intervals. Default 0.95.

    Raises:
        ValueError: a value is not finite, or a method, seed and operating point occurs twice.
    """
    groups = _grouped(rows, field)
    methods = {method: place for place, method in enumerate(dict.fromkeys(row.method for row in rows))}
    pairs: dict[tuple[str, str], int] = {
        pair: place for place, pair in enumerate(dict.fromkeys((row.score, row.scope) for row in rows))
    }
    ordered = sorted(groups, key=lambda p: (p[6], methods[p[0]], pairs[(p[2], p[3])], p[5], p[4], p[1]))
    entries = []
    for point in ordered:
        method, sparsity, score, scope, recalibrated, finetuned, split = point
        values = tuple(sorted(groups[point].items()))
        dense = groups.get((method, 0.0, score, scope, recalibrated, finetuned, split), {})
        found = estimate((value for _, value in values), confidence)
        entries.append(
            Entry(
                found.n, found.mean, found.std, found.low, found.high,
                method=method, sparsity=sparsity, score=score, scope=scope, recalibrated=recalibrated,
                finetuned=finetuned, split=split,
                values=values, to_dense=paired_difference(values, dense.items(), confidence),
            )
        )  # fmt: skip
    return entries


def against(entries: Sequence[Entry], baseline: str, confidence: float = CONFIDENCE) -> list[tuple[Entry, Estimate]]:
    """Each entry of another method with its difference to the baseline at the same operating point, paired over seeds.

    Entries without a counterpart, or that share no seed with it, are left out.
    """
    reference = {_place(entry): entry for entry in entries if entry.method == baseline}
    found = []
    for entry in entries:
        other = reference.get(_place(entry))
        if entry.method == baseline or other is None:
            continue
        difference = paired_difference(entry.values, other.values, confidence)
        if difference is not None:
            found.append((entry, difference))
    return found


def _place(entry: Entry) -> tuple[float, str, str, bool, int, str]:
    return entry.sparsity, entry.score, entry.scope, entry.recalibrated, entry.finetuned, entry.split


def fine_tuned_rows(rows: Sequence[R]) -> list[R]:
    """Rows of networks that were trained on after pruning, on one split: "test" where there is any such row."""
    kept = [row for row in rows if row.finetuned]
    splits = {row.split for row in kept}
    return [row for row in kept if row.split == ("test" if "test" in splits else "validation")]


def main_rows(rows: Sequence[R]) -> list[R]:
    """Rows of the study's own way of pruning, without the controls and without fine-tuning, on one split.

    The way of pruning is the (score, scope) whose networks were written as files; failing that global magnitude,
    failing that the first that is not random [ours]. The split is "test" where there is any such row.
    """
    splits = {row.split for row in rows}
    wanted = "test" if "test" in splits else "validation"
    kept = [row for row in rows if row.split == wanted and not row.finetuned]
    if not kept:
        return []
    pairs = list(dict.fromkeys((row.score, row.scope) for row in kept))
    filed = {(row.score, row.scope) for row in kept if row.file_bytes is not None}
    best = min(pairs, key=lambda p: (p not in filed, p != ("magnitude", "global"), p[0] == "random", pairs.index(p)))
    return [row for row in kept if (row.score, row.scope) == best]


def baseline_of(methods: Sequence[str]) -> str:
    """What the others are compared with: "sgd" where there is one, else the first."""
    return "sgd" if "sgd" in methods else methods[0]


def sparsity_label(sparsity: float) -> str:
    """Percent with as few digits as name the density and the sparsity within one percent of each.

    Example:
        >>> [sparsity_label(s) for s in (0.0, 0.5, 0.625, 0.98002, 0.995, 0.9995)]
        ['dense', '50 %', '62.5 %', '98 %', '99.5 %', '99.95 %']
    """
    if sparsity == 0:
        return "dense"
    percent = 100 * sparsity
    for digits in range(6):
        if abs(round(percent, digits) - percent) <= 0.01 * min(percent, 100 - percent):
            return f"{round(percent, digits):g} %"
    return f"{percent:.6g} %"

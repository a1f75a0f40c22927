"""Contrasts that were named before a study was looked at: a paired test of each, corrected for their number."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from pydantic import Field

from trimtab.checks import hint, number
from trimtab.runs.metric import METRICS, Metric, MetricName
from trimtab.studies.documents import Record
from trimtab.studies.statistics import Entry, Row, estimate, main_rows, paired_difference, sparsity_label, table

LEVEL = 0.05
"""Greatest corrected p at which a contrast counts as shown: the field's custom."""


class Contrast(Record):
    """A question put beforehand: one method minus another at one sparsity."""

    own: str = Field(description="label of the method that is said to differ")
    other: str = Field(description="label of the one it is held against")
    sparsity: float = Field(ge=0, lt=1, description="0 is the dense network")
    recalibrated: bool = Field(
        default=True, description="networks with BatchNorm statistics re-estimated after pruning"
    )

    def __str__(self) -> str:
        place = "dense" if self.sparsity == 0 else f"at {sparsity_label(self.sparsity)}"
        return f"{self.own} - {self.other} {place}, {'recalibrated' if self.recalibrated else 'as pruned'}"


class Judged(Contrast):
    """What came of a contrast; numbers are None where fewer than two seeds have both networks."""

    metric: MetricName = Field(default="accuracy", description="what differs; of bits per byte a fall is a gain")
    seeds: int = Field(description="that both methods have")
    difference: float | None = Field(default=None, description="mean over the seeds, in the metric's own unit")
    low: float | None = Field(default=None, description="of the 95 % Student t interval of the paired difference")
    high: float | None = Field(default=None, description="of the same, which is not corrected")
    p: float | None = Field(default=None, description="two-sided paired t test")
    corrected: float | None = Field(
        default=None, description="p after Holm's correction over all contrasts of the study"
    )

    @property
    def shown(self) -> bool:
        """Whether the difference can be told from zero after the correction."""
        return self.corrected is not None and self.corrected < LEVEL

    @property
    def measure(self) -> Metric:
        """The metric: which way is better, how it is written."""
        return METRICS[self.metric]

    @property
    def words(self) -> str:
        """The result in one sentence.

        Example:
            >>> Judged(own="l1", other="sgd", sparsity=0.9, seeds=5, difference=0.021, low=0.012, high=0.03, p=0.003,
            ...        corrected=0.009).words
            'l1 - sgd at 90 %, recalibrated: +2.1 points (95 % interval +1.2 to +3.0, 5 seeds), p 0.003, corrected 0.009'
        """
        if self.difference is None or self.low is None or self.high is None or self.p is None or self.corrected is None:
            return f"{self}: not judged, {self.seeds} seed{'s' * (self.seeds != 1)} in common"
        low, high = (self.measure.number(end, signed=True) for end in (self.low, self.high))
        text = f"{self}: {self.measure.change(self.difference)} (95 % interval {low} to {high}, "
        text += f"{self.seeds} seeds), p {self.p:.2g}, corrected {self.corrected:.2g}"
        return text if self.shown else f"{text}: not told from zero"


def holm(values: Iterable[float], tests: int | None = None) -> list[float]:
    """Holm's correction: p values that hold together, in the order given.

    With `p_(1) <= ... <= p_(n)` the i-th becomes `max over j <= i of min(1, (m - j + 1) p_(j))`. To call significant what
    lies below a level keeps the chance of any false call below that level, whatever the tests have in common.

    Args:
        values: uncorrected p values in [0, 1].
        tests: m, how many tests were planned, where more were than gave a value. Default: as many as there are values.

    Raises:
        ValueError: a value outside [0, 1], or fewer tests than values.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure" (1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    given = [number("a p value", value, least=0, most=1) for value in values]
    planned = len(given) if tests is None else tests
    if planned < len(given):
        raise ValueError(f"tests must be at least the number of values, {len(given)}, got {tests}")
    found = [0.0] * len(given)
    reached = 0.0
    for rank, place in enumerate(sorted(range(len(given)), key=given.__getitem__)):
        reached = max(reached, min(1.0, (planned - rank) * given[place]))
        found[place] = reached
    return found


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p value of the paired t test: `t = mean / (std / sqrt(n))` with n - 1 degrees of freedom.

    Args:
        differences: two or more finite numbers.

    Returns:
        The p value; without any spread 1 for a mean of zero and 0 for any other.
    """
    from scipy import stats

    found = estimate(differences)
    if not found.std:
        return 1.0 if found.mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(found.mean) / (found.std / math.sqrt(found.n)), found.n - 1))


def _values(entries: Sequence[Entry], label: str, contrast: Contrast) -> dict[int, float]:
    """By seed, where the sparsity reached (whole weights are removed) is the contrast's within a percent of what is left."""
    alike = [one for one in entries if (one.method, one.recalibrated) == (label, contrast.recalibrated)]
    nearest = min(alike, key=lambda one: abs(one.sparsity - contrast.sparsity), default=None)
    if nearest is None:
        return {}
    near = abs(nearest.sparsity - contrast.sparsity) <= 0.01 * min(contrast.sparsity, 1 - contrast.sparsity)
    return dict(nearest.values) if near else {}


def judge(rows: Sequence[Row], contrasts: Sequence[Contrast], metric: Metric = METRICS["accuracy"]) -> list[Judged]:
    """Each contrast on a summary's rows: difference, interval, p value, and that corrected over all contrasts named.

    A contrast that cannot be judged (yet) counts among the tests of the correction all the same.

    Args:
        rows: of one split; the study's own way of pruning counts, controls do not.
        contrasts: as they were named beforehand.
        metric: what is compared.
    """
    entries = table(main_rows(rows), field=metric.column)
    found: list[Judged] = []
    for contrast in contrasts:
        own, other = (_values(entries, label, contrast) for label in (contrast.own, contrast.other))
        common = [seed for seed in own if seed in other]
        estimated = paired_difference(own.items(), other.items())
        if estimated is None or len(common) < 2:
            found.append(Judged(**contrast.model_dump(), metric=metric.name, seeds=len(common)))
            continue
        found.append(
            Judged(
                **contrast.model_dump(), metric=metric.name, seeds=len(common), difference=estimated.mean,
                low=estimated.low, high=estimated.high,
                p=paired_p([own[seed] - other[seed] for seed in common]),
            )
        )  # fmt: skip
    corrected = iter(holm((one.p for one in found if one.p is not None), len(found)))
    return [one if one.p is None else one.model_copy(update={"corrected": next(corrected)}) for one in found]


def check_contrasts(contrasts: Sequence[Contrast], sparsities: dict[str, Sequence[float]], where: str) -> None:
    """That each contrast can be measured by the study that names it.

    Args:
        contrasts: as named.
        sparsities: what each label of the study is pruned to.
        where: what errors begin with.

    Raises:
        ValueError: names the contrast: a label that no row has, one method against itself, a sparsity that is not measured,
            or a contrast that is named twice.
    """
    for place, contrast in enumerate(contrasts, start=1):
        start = f"{where}, contrast {place}"
        for label in (contrast.own, contrast.other):
            if label not in sparsities:
                raise ValueError(f"{start}: no row is named {label!r}; {hint(label, sparsities, 'labels')}")
            measured = [0.0, *sparsities[label]]
            if not any(math.isclose(contrast.sparsity, one, abs_tol=1e-6) for one in measured):
                listed = ", ".join(f"{one:g}" for one in measured)
                raise ValueError(
                    f"{start}: {label} is not measured at sparsity {contrast.sparsity:g}, only at {listed}"
                )
        if contrast.own == contrast.other:
            raise ValueError(f"{start}: {contrast.own} against itself")
        if contrast in contrasts[: place - 1]:
            raise ValueError(f"{start}: {contrast} is named twice")

"""Whether what the meter says early tells how a run ends: predicted against measured gap of the loss, over formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.studies.precision.conclusions import last_loss, paired
from trimtab.studies.precision.products import PARTS, WHOLE
from trimtab.studies.precision.records import FormatRun, PrecisionStudy
from trimtab.studies.precision.variants import BASELINE
from trimtab.studies.statistics import Estimate, estimate, spearman
from trimtab.tables.rows import GLOBAL

LEAST = 4
"""Labels from which a rank correlation is told: of three numbers one in six orders is the same by chance [ours]."""


@dataclass(frozen=True)
class Predicted:
    """One metered label.

    Attributes:
        label: its name.
        gap: the predicted rise of the loss early in the runs, to first order, by forward rounding; None where no products are
            rounded.
        error: squared error of the products, or gradients, over their squared norm, early in the runs.
        measured: training loss of the last epoch minus that of full precision with the same seed.
    """

    label: str
    gap: Estimate | None
    error: Estimate | None
    measured: Estimate | None


def _over_seeds(runs: Sequence[FormatRun], pick: Callable[[FormatRun], float | None]) -> Estimate | None:
    values = [value for run in runs if (value := pick(run)) is not None]
    return estimate(values) if values else None


def predictions(study: PrecisionStudy) -> list[Predicted]:
    """The metered labels, in the study's order."""
    found = []
    for label in study.labels:
        runs = study.of(label)
        if label != BASELINE and any(run.errors for run in runs):
            gap = _over_seeds(runs, lambda run: run.early_gap)
            error = _over_seeds(runs, lambda run: run.early_error)
            found.append(Predicted(label, gap, error, paired(study, label, BASELINE, last_loss)))
    return found


def parts_of(runs: Sequence[FormatRun]) -> dict[str, tuple[float | None, ...]]:
    """By product, or of the gradients, all layers together: q, scale bias, dead zone, grid noise; medians over the seeds."""
    found: dict[str, tuple[float | None, ...]] = {}
    for kind in WHOLE:
        own = [one for run in runs for one in run.errors if one.kind == kind and one.layer == GLOBAL]
        if own:
            found[kind] = tuple(middle([getattr(one, name) for one in own]) for name in ("q", *PARTS))
    return found


def middle(values: Sequence[float | None]) -> float | None:
    """Median of the numbers among `values`, the mean of the middle two where they are even in number, None of none."""
    found = sorted(value for value in values if value is not None)
    return (found[(len(found) - 1) // 2] + found[len(found) // 2]) / 2 if found else None


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's, to six digits; None of constants or of too few numbers.

    Example:
        >>> rank_correlation([1, 2, 3, 9], [0, 1, 5, 6]), rank_correlation([1, 2], [2, 1]) is None
        (1.0, True)
    """
    found = spearman(one, other, LEAST)
    return None if found is None else round(found, 6)


def agreement(found: Sequence[Predicted], pick: Callable[[Predicted], Estimate | None]) -> float | None:
    """Rank correlation of a prediction with the measured gap, over the labels that have both."""
    pairs = [
        (own.mean, one.measured.mean) for one in found if (own := pick(one)) is not None and one.measured is not None
    ]
    return rank_correlation([first for first, _ in pairs], [second for _, second in pairs])

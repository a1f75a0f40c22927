"""Number formats over seeds: means with intervals, differences of runs that differ in one thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.studies.precision.records import FormatRun, PrecisionStudy
from trimtab.studies.precision.variants import BASELINE
from trimtab.studies.statistics import Estimate, estimate

EXTRAS = {
    "stochastic": "stochastic rounding", "toward zero": "rounding toward zero", "tensor": "one scale per tensor",
    "channel": "one scale per channel", "block": "one scale per block", "mx": "MX scaling", "compensated": "compensation",
}  # fmt: skip
"""Parts of a label that each stand for one setting, in words."""


@dataclass(frozen=True)
class Quality:
    """One label over its seeds; None where no seed has a number.

    Attributes:
        finished: runs that did not diverge.
        train_loss: of the last epoch.
        loss, accuracy: on the test split.
        validation_loss: on the validation split, what a step may be chosen by.
        to_full: accuracy minus that of full precision, paired over seeds.
    """

    finished: int
    train_loss: Estimate | None
    loss: Estimate | None
    accuracy: Estimate | None
    validation_loss: Estimate | None
    to_full: Estimate | None


@dataclass(frozen=True)
class Compared:
    """Two labels that differ in one thing.

    Attributes:
        what: the thing, in words.
        label, against: with it and without.
        accuracy, train_loss: difference of the test accuracy and the training loss, paired over seeds.
    """

    what: str
    label: str
    against: str
    accuracy: Estimate | None
    train_loss: Estimate | None


def _over_seeds(runs: Sequence[FormatRun], pick: Callable[[FormatRun], float | None]) -> Estimate | None:
    values = [value for run in runs if run.status == "finished" and (value := pick(run)) is not None]
    return estimate(values) if values else None


def last_loss(run: FormatRun) -> float | None:
    """Training loss of the last epoch of a finished run."""
    return run.train_loss[-1] if run.train_loss and run.status == "finished" else None


def paired(
    study: PrecisionStudy, label: str, against: str, pick: Callable[[FormatRun], float | None]
) -> Estimate | None:
    """Mean difference over the seeds that both labels finished; None where there is no such seed."""
    others = {run.seed: pick(run) for run in study.of(against)}
    values = [
        value - other
        for run in study.of(label)
        if (value := pick(run)) is not None and (other := others.get(run.seed)) is not None
    ]
    return estimate(values) if values else None


def quality(study: PrecisionStudy, label: str) -> Quality:
    """The runs of a label over seeds."""
    runs = study.of(label)
    return Quality(
        finished=sum(run.status == "finished" for run in runs),
        train_loss=_over_seeds(runs, last_loss),
        loss=_over_seeds(runs, lambda run: run.test_loss),
        accuracy=_over_seeds(runs, lambda run: run.test_accuracy),
        validation_loss=_over_seeds(runs, lambda run: run.validation_loss),
        to_full=None if label == BASELINE else paired(study, label, BASELINE, lambda run: run.test_accuracy),
    )


def comparisons(study: PrecisionStudy) -> list[Compared]:
    """Every pair of labels of which one has one part more than the other.

    Labels are made by `variant_label`: the format first, then what differs from the plain way.
    """
    parts = {label: label.split(", ") for label in study.labels}
    found = []
    for label, own in parts.items():
        for extra in own[1:]:
            without = ", ".join(part for part in own if part != extra)
            if without in parts:
                what = EXTRAS.get(extra, f"a step {extra.removeprefix('step x')} times as long")
                found.append(
                    Compared(
                        what, label, without, paired(study, label, without, lambda run: run.test_accuracy),
                        paired(study, label, without, last_loss),
                    )
                )  # fmt: skip
    return sorted(found, key=lambda one: one.what)


def _named(label: str) -> str:
    """A label whose commas do not mix with those of a list."""
    format, *more = label.split(", ")
    return f"{format} ({', '.join(more)})" if more else format


def in_words(study: PrecisionStudy) -> str:
    """One sentence: full precision's accuracy, the formats not told apart from it, those below, those that diverged."""
    full = quality(study, BASELINE).accuracy
    start = "" if full is None else f"Full precision reaches {100 * full.mean:.1f} % on the test split"
    alike: list[str] = []
    below: list[str] = []
    above: list[str] = []
    single: list[str] = []
    diverged: list[str] = []
    for label in study.labels:
        if label.split(", ")[0] == BASELINE:
            continue
        found = quality(study, label)
        if found.accuracy is None:
            diverged.append(_named(label))
        elif found.to_full is None or found.to_full.low is None:
            single.append(f"{_named(label)} {100 * found.accuracy.mean:.1f} %")
        elif not found.to_full.excludes_zero:
            alike.append(_named(label))
        else:
            change = f"{_named(label)} by {100 * abs(found.to_full.mean):.1f} points"
            (below if found.to_full.mean < 0 else above).append(change)
    clauses = [
        f"{words} {', '.join(labels)}"
        for words, labels in (
            ("not told apart from it:", alike), ("below it:", below), ("above it:", above), ("with one seed:", single),
            ("diverged:", diverged),
        )
        if labels
    ]  # fmt: skip
    return "; ".join([part for part in (start, *clauses) if part]) + "."

"""Number formats over seeds: means with intervals, differences of runs that differ in one thing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trimtab.studies.precision.records import FormatRun, PrecisionStudy
from trimtab.studies.precision.variants import BASELINE, PLAIN, Setting
from trimtab.studies.statistics import Estimate, estimate

IN_WORDS = {
    "stochastic": "stochastic rounding", "toward_zero": "rounding toward zero", "tensor": "one scale per tensor",
    "channel": "one scale per channel", "block": "one scale per block", "mx": "MX scaling", True: "compensation",
}  # fmt: skip
"""Values of one setting, in words."""


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
    """Every pair of labels of which one has one setting more than the other."""
    labels = {run.setting: run.label for run in reversed(study.runs)}
    found = []
    for setting, label in labels.items():
        for name, plain in PLAIN:
            value = getattr(setting, name)
            against = labels.get(setting.model_copy(update={name: plain}))
            if value == plain or against is None:
                continue
            what = f"a step {value:g} times as long" if name == "step_factor" else IN_WORDS[value]
            accuracy = paired(study, label, against, lambda run: run.test_accuracy)
            found.append(Compared(what, label, against, accuracy, paired(study, label, against, last_loss)))
    return sorted(found, key=lambda one: (one.what, study.labels.index(one.label)))


def _named(setting: Setting) -> str:
    """A label whose commas do not mix with those of a list."""
    return f"{setting.format} ({' + '.join(setting.words())})" if setting.words() else setting.format


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
        setting = study.of(label)[0].setting
        if setting.format == BASELINE:
            continue
        name = _named(setting)
        found = quality(study, label)
        if found.accuracy is None:
            diverged.append(name)
        elif found.to_full is None or found.to_full.low is None:
            single.append(f"{name} {100 * found.accuracy.mean:.1f} %")
        elif not found.to_full.excludes_zero:
            alike.append(name)
        else:
            change = f"{name} by {100 * abs(found.to_full.mean):.1f} points"
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

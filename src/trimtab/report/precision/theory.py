"""Measurement, prediction and bound of SGD with rounded gradients, drawn over each other; and the page of a whole study."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.report.numerals import spans
from trimtab.report.page import as_yaml, render_sections
from trimtab.report.palette import Look, looks
from trimtab.report.parts import Cell, Figure, Section, Table, listed, number, plain, series_of
from trimtab.report.precision.dead import precision_verdict
from trimtab.report.precision.formats import (
    precision_sections,
    share,
)
from trimtab.report.traces import SMALL, band, line, shortened
from trimtab.studies.precision.conclusions import last_loss
from trimtab.studies.precision.logistic import (
    BATCH,
    REPETITIONS,
    STEP,
    Descent,
)
from trimtab.studies.precision.records import PrecisionStudy
from trimtab.studies.precision.variants import BASELINE
from trimtab.studies.precision.verdict import verdicts

GAP_AXIS = {"title": {"text": "F(w) \u2212 F*"}, "type": "log", "exponentformat": "power", "dtick": 1}


def descent_label(found: Descent) -> str:
    """Format, and what differs from rounding to nearest without a scale."""
    parts = [found.format]
    parts += [] if found.rounding == "nearest" else [found.rounding.replace("_", " ")]
    parts += [] if found.scaling == "none" else ["one scale"]
    return ", ".join(parts)


def _line(name: str, look: Look, found: Descent, values: Sequence[float]) -> dict[str, Any]:
    shown = shortened([value if value > 0 else None for value in values])
    return line(name, look, found.steps, shown, f"{name}, step %{{x}}: %{{y:.3g}}")


def _figure(place: int, found: Descent, low: float, high: float) -> Figure:
    ends = [(step, gap, half) for step, gap, half in zip(found.steps, found.gap, found.half, strict=True) if gap > half]
    area = band(
        "measured", "@s1/0.2", [step for step, *_ in ends], [gap - half for _, gap, half in ends],
        [gap + half for _, gap, half in ends], group=False,
    )  # fmt: skip
    traces = [area, _line("measured", Look("@s1"), found, found.gap)]
    if found.prediction is not None:
        traces.append(_line("predicted", Look("@s2", "dash"), found, found.prediction))
    if found.bound is not None:
        traces.append(_line("bound", Look("@s3", "dot"), found, found.bound))
    label = descent_label(found)
    return Figure(
        f"logistic-{place}", f"{label}: distance to the minimum over the steps, measured, predicted and bounded.", {"": traces},
        {"xaxis": {"title": {"text": "step"}, "type": "log", "dtick": 1}, "yaxis": {**GAP_AXIS, "range": [low, high]},
         "height": 320, "margin": {"l": 56}, "legend": SMALL},
        small=True, title=plain(label),
    )  # fmt: skip


def logistic_section(found: Sequence[Descent]) -> Section:
    """The strongly convex problem: a figure for each way of rounding, and the floors in numbers."""
    title = "Measured, predicted and bounded: logistic regression"
    if not found:
        return Section("logistic", title, missing="Left out with --no-logistic.")
    drawn = [v for one in found for v in (*one.gap, *(one.prediction or []), *(one.bound or [])) if v > 0]
    low, high = math.log10(min(drawn)) - 0.3, math.log10(max(drawn)) + 0.2
    floors = spans([one.floor for one in found], [one.floor_half for one in found])
    rows = [
        [
            Cell(descent_label(one)), number(one.q, 4), number(one.q_min, 4), share(one.dead), number(one.noise),
            Cell(text, one.floor), number(one.floor_predicted), number(one.floor_bound),
            Cell(one.why_no_bound),
        ]
        for one, text in zip(found, floors, strict=True)
    ]  # fmt: skip
    head = [
        "format", "q", "least q", "dead, %", "s\u00b2", "floor, measured", "predicted", "bound at the end", "why no bound",
    ]  # fmt: skip
    return Section(
        "logistic", title,
        [f"scikit-learn's breast cancer data (569 rows, 31 weights) with an L2 penalty, so that L, c and F* are known: SGD "
         f"with {BATCH} rows a step, step size {STEP:g} / L, {REPETITIONS} repetitions from w = 0. Prediction: the closed form "
         "of a quadratic for each eigenvector of the Hessian at the minimum, with the q and the noise measured in the last "
         "quarter of the steps; it is about the end, not the first steps, where the curvature is another. Bound: with the "
         "least q and the largest noise of any step; it assumes noise of mean zero, which only stochastic rounding inside the "
         "range has.",
         "q, floor: over the last quarter. s\u00b2: largest mean squared noise of a step. Shrinkage alone lowers the floor; "
         "noise raises it."],
        [_figure(place, one, low, high) for place, one in enumerate(found)],
        [Table("logistic", "Floors in numbers", head, rows)],
    )  # fmt: skip


def _runs_section(study: PrecisionStudy) -> Section:
    rows = [
        [
            Cell(run.label), Cell(str(run.seed), run.seed), Cell(run.status), number(last_loss(run), 4),
            share(run.validation_accuracy), share(run.test_accuracy), number(run.test_loss, 4), Cell(run.folder),
        ]
        for run in study.runs
    ]  # fmt: skip
    head = [
        "format", "seed", "status", "training loss", "validation accuracy, %", "test accuracy, %", "test loss", "folder",
    ]  # fmt: skip
    return Section(
        "precision-runs",
        "The training runs",
        tables=[Table("runs", "Runs", head, rows, folded=len(rows) > 12)],
    )


def render_precision(study: PrecisionStudy, path: Path) -> Path:
    """Write a study of number formats as one self-contained page.

    Args:
        study: what was found.
        path: the file to write.

    Returns:
        `path`.

    Raises:
        ValueError: the study has no run.
        OSError: the file could not be written.
    """
    if not study.runs:
        raise ValueError("a page of number formats needs at least one run, got none")
    own = looks(study.labels, BASELINE)
    shown = list(dict.fromkeys([BASELINE, *(one.label for one in verdicts(study))]))[:5]
    rows = [
        {
            "format": run.label, "seed": run.seed, "status": run.status, "train_loss": last_loss(run),
            "validation_accuracy": run.validation_accuracy, "test_accuracy": run.test_accuracy, "test_loss": run.test_loss,
            "q_median": run.shrinkage.q_median if run.shrinkage else None,
            "q_min": run.shrinkage.q_min if run.shrinkage else None,
        }
        for run in study.runs
    ]  # fmt: skip
    data = {**study.model_dump(mode="json", by_alias=True), "rows": rows}
    seeds = sorted({run.seed for run in study.runs})
    facts = [
        ("formats", "; ".join(study.labels)),
        ("created", study.created or "not recorded"),
        ("hardware", listed(study.hardware)),
        ("versions", listed(study.versions)),
        ("seeds", f"{len(seeds)} ({', '.join(map(str, seeds))})"),
        ("data", str(study.recipe["data"]["name"])),
        ("model", str(study.recipe["model"]["name"])),
    ]
    return render_sections(
        [*precision_sections(study, own), logistic_section(study.logistic), _runs_section(study)],
        path,
        name=study.name,
        verdict=precision_verdict(study, own),
        series=series_of(own, shown),
        headline=study.headline,
        facts=facts,
        recipe=as_yaml(study.recipe),
        data=json.dumps(data),
        file="precision.json",
        notes=[f"Not finished and left out: {', '.join(study.unfinished)}."] if study.unfinished else [],
        missing=study.missing,
        done=len(study.runs),
    )

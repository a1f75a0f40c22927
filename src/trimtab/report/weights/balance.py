"""VAR against weight decay: where each layer came to rest, and the shape of the weights against the clock."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import Cell, Figure, Section, Table, escaped
from trimtab.report.traces import dots, line, powers
from trimtab.report.weights.study import Study
from trimtab.studies.summary import Run

GAUSSIAN = math.sqrt(math.pi / 2 - 1)
"""Coefficient of variation of the magnitudes of Gaussian weights."""
ENOUGH = 0.5
"""T below which the lever can hardly show, as its own forecast says."""
Told = Mapping[str, float | None]


def told_by_var(run: Run) -> Told | None:
    """What the run's record holds of VAR and weight decay; None where it holds nothing."""
    for name, numbers in run.levers.items():
        if name.partition("@")[0] == "var" and numbers.get("T") is not None:
            return numbers
    return None


def _layers(told: Told) -> list[tuple[str, float, float]]:
    """Name, V0 / V* and V / V* of every layer whose numbers can be drawn."""
    found = []
    for key in told:
        start, end = told.get(f"V0/V* {key[2:]}"), told.get(f"V/V* {key[2:]}")
        if key.startswith("T ") and start and end:
            found.append((key[2:], start, end))
    return found


def balance_section(study: Study) -> Section | None:
    """Table of the runs, measured V against V*, coefficient of variation against T; None where no run has a clock."""
    runs = [(run, told) for run in study.summary.runs if (told := told_by_var(run)) is not None]
    if not runs:
        return None
    by_method: dict[str, list[tuple[Run, Told]]] = {}
    for run, told in runs:
        by_method.setdefault(run.method, []).append((run, told))
    ends, clock = [], []
    for method, own in by_method.items():
        look = study.looks[method]
        points = [(run, *layer) for run, told in own for layer in _layers(told)]
        hover = "%{text}: from %{x:.3g} to %{y:.3g}"
        texts = [escaped(f"{method}, seed {run.seed}, {name}") for run, name, *_ in points]
        xs, ys = [x for *_, x, _ in points], [y for *_, y in points]
        ends.append(dots(method, look, xs, ys, hover, size=6, group=True, text=texts))
        shown = [(run, told) for run, told in own if told.get("CV")]
        seeds = [escaped(f"{method}, seed {run.seed}") for run, _ in shown]
        times, shapes = [told["T"] for _, told in shown], [told["CV"] for _, told in shown]
        clock.append(dots(method, look, times, shapes, "%{text}: CV %{y:.3g} at T %{x:.3g}", group=True, text=seeds))
    most = max(float(told["T"] or 0) for _, told in runs)
    grid = [most * place / 40 for place in range(41)]
    alone = [GAUSSIAN * math.exp(min(time, 3.0)) for time in grid]
    free = line("Gaussian weights, no task", Look("@muted", "dot"), grid, alone, None)
    figures = [
        Figure(
            "balance",
            "Variance of the magnitudes of each layer over V*, where VAR and weight decay balance: at the start (across) and "
            "at the end (up). At rest it is 1, a little less where many weights are zero; the task may hold it elsewhere.",
            {"": ends},
            {
                "xaxis": {"title": {"text": "V0 / V*"}, "type": "log"},
                "yaxis": {"title": {"text": "V / V* at the end"}, **powers(ends)},
                "height": 420,
            },
            small=True,
            title="Where the layers came to rest",
        ),
        Figure(
            "clock",
            "Coefficient of variation of the magnitudes against T. Dotted: what Gaussian weights do without a task, until they "
            "reach zero; the task holds against it.",
            {"": [*clock, free]},
            {
                "xaxis": {"title": {"text": "T"}},
                "yaxis": {"title": {"text": "coefficient of variation"}},
                "height": 420,
            },
            small=True,
            title="Shape against the clock",
        ),
    ]
    head = ["method", "seed", "T", "tau", "V0 / V*", "V / V*", "coefficient of variation", "long enough"]
    return Section(
        "balance",
        "VAR and weight decay",
        [
            "VAR acts through weight decay: a layer's shape moves by the clock T, which equals tau = decay × Σ lr / (1 − "
            f"momentum) once its variance V rests at V*. Below T = {ENOUGH:g} the run was too short, or the decay too small, "
            "to judge VAR by it."
        ],
        figures,
        [Table("balance", "The runs", head, [_row(study, run, told) for run, told in runs])],
    )


def _row(study: Study, run: Run, told: Told) -> list[Cell]:
    values: list[Any] = [told.get(name) for name in ("T", "tau", "V0/V*", "V/V*", "CV")]
    long_enough = float(told["T"] or 0) >= ENOUGH
    return [
        Cell(run.method, look=study.looks[run.method]),
        Cell(str(run.seed), run.seed),
        *(Cell("" if value is None else f"{value:.2f}", value) for value in values),
        Cell("yes" if long_enough else "no", note="good" if long_enough else "bad"),
    ]

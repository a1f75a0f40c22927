"""Number formats side by side: quality over seeds, shrinkage over training, layers by steps, what helps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from trimtab.report.heat import WIDE, heat_map
from trimtab.report.numerals import column
from trimtab.report.palette import Look
from trimtab.report.parts import MINUS, Cell, Figure, Section, Table, number, plain, seeds_sentence, spread
from trimtab.report.precision.dead import dead_section
from trimtab.report.precision.products import products_section
from trimtab.report.traces import SMALL, dots, from_zero, holding, line, shortened, whiskers
from trimtab.studies.precision.conclusions import Compared, comparisons, quality
from trimtab.studies.precision.prediction import middle
from trimtab.studies.precision.records import FormatRun, PrecisionStudy, ShrinkageCurves
from trimtab.studies.statistics import Estimate

HIGHEST = 1.2
"""q above it is drawn as this: one wild step of a dead layer would take the colours of all others away."""


def share(value: float | None) -> Cell:
    """A fraction in percent for a table, blank for None."""
    return number(None if value is None else round(100 * value, 6))


def quality_cell(found: Estimate | None, *, percent: bool, signed: bool = False) -> Cell:
    """Mean and half the interval: in percent, or as a plain number."""
    if found is None:
        return Cell("", None)
    if percent:
        return Cell(spread(found, signed=signed), round(100 * found.mean, 4))
    sign = "+" if signed else ""
    text = f"{found.mean:{sign}.3f}" + ("" if found.half is None else f" ± {found.half:.3f}")
    return Cell(text.replace("-", MINUS), round(found.mean, 6))


def median_of(runs: Sequence[FormatRun], pick: Callable[[ShrinkageCurves], float | None]) -> float | None:
    """Median over seeds of a number of the curves; None where no seed has one."""
    return middle([pick(run.shrinkage) for run in runs if run.shrinkage is not None])


PICKED: tuple[Callable[[ShrinkageCurves], float | None], ...] = (
    lambda own: own.q_median, lambda own: own.q_min, lambda own: own.dead_median, lambda own: own.overflow_median,
)  # fmt: skip


def _quality_tables(study: PrecisionStudy, looks: Mapping[str, Look]) -> list[Table]:
    """Loss and accuracy; what rounding did: two tables that fit a page."""
    rows, shrunk = [], []
    for label in study.labels:
        runs, found = study.of(label), quality(study, label)
        least = next((run.shrinkage.least_layer for run in runs if run.shrinkage and run.shrinkage.least_layer), None)
        against = quality_cell(found.to_full, percent=True, signed=True)
        if found.to_full is not None and found.to_full.excludes_zero:
            against = replace(against, best=True, mark="gain" if found.to_full.mean > 0 else "harm")
        rows.append(
            [
                Cell(label, look=looks[label]), Cell(f"{found.finished} of {len(runs)}", found.finished),
                quality_cell(found.train_loss, percent=False), quality_cell(found.loss, percent=False),
                quality_cell(found.accuracy, percent=True), against,
            ]
        )  # fmt: skip
        if any(run.shrinkage for run in runs):
            picked = [median_of(runs, pick) for pick in PICKED]
            shrunk.append((label, picked, (least or "").removesuffix(".weight")))
    head = ["format", "finished", "training loss", "test loss", "test accuracy, %", "against full, points"]
    tables = [Table("formats", "Formats in numbers", head, rows)]
    if shrunk:
        head = ["format", "q", "least q", "dead, %", "overflow, %", "layer of least q"]
        scaled = [[None if v is None else v * scale for v in values] for scale, values in zip(
            (1, 1, 100, 100), zip(*(picked for _, picked, _ in shrunk), strict=True), strict=True
        )]  # fmt: skip
        columns = [
            [
                Cell(text, None if value is None else round(value, 6))
                for text, value in zip(column(own), own, strict=True)
            ]
            for own in scaled
        ]
        lines = [
            [Cell(label, look=looks[label]), *cells, Cell(least)]
            for (label, _, least), cells in zip(shrunk, zip(*columns, strict=True), strict=True)
        ]
        tables.append(Table("shrinkage", "What rounding did to the gradients", head, lines))
    return tables


def _quality_figure(study: PrecisionStudy, looks: Mapping[str, Look]) -> Figure:
    labels = list(reversed(study.labels))
    traces: list[dict[str, Any]] = []
    for place, label in enumerate(labels):
        found = quality(study, label).accuracy
        if found is None:
            continue
        look = looks[label]
        traces.append(
            dots(
                label, look, [100 * found.mean], [place], "%{fullData.name}: %{x:.1f} %", size=9, showlegend=False,
                error_x=whiskers(look, [100 * (found.half or 0)], thickness=1.5),
            )
        )  # fmt: skip
    counts = [len(study.of(label)) for label in labels]
    return Figure(
        "precision-accuracy",
        "Accuracy on the test split by number format. " + seeds_sentence(counts, "Whiskers are"),
        {"": traces},
        {"xaxis": {"title": {"text": "test accuracy, %"}, "zeroline": False},
         "yaxis": {"tickvals": list(range(len(labels))), "ticktext": [plain(label) for label in labels],
                   "range": [-0.6, len(labels) - 0.4], "zeroline": False},
         "height": 120 + 26 * len(labels), "margin": {"l": 30}},
    )  # fmt: skip


def _curves(
    study: PrecisionStudy,
    looks: Mapping[str, Look],
    pick: Callable[[ShrinkageCurves], Sequence[float | None]],
    scale: float = 1.0,
) -> list[dict[str, Any]]:
    """A line per label: mean over the seeds, where all have a number."""
    traces = []
    for label in study.labels:
        tables = [
            dict(zip(run.shrinkage.steps, pick(run.shrinkage), strict=True)) for run in study.of(label) if run.shrinkage
        ]
        if not tables:
            continue
        points = []
        for step in tables[0]:
            values = [value for table in tables if (value := table.get(step)) is not None]
            if len(values) == len(tables):
                points.append((step, scale * sum(values) / len(values)))
        if not points:
            continue
        x, y = [step for step, _ in points], shortened([value for _, value in points])
        traces.append(line(label, looks[label], x, y, "%{fullData.name}, step %{x}: %{y:.3g}", group=True))
    return traces


def _shrinkage_section(study: PrecisionStudy, looks: Mapping[str, Look]) -> Section:
    lines = _curves(study, looks, lambda own: own.q)
    if not lines:
        return Section("precision-q", "Shrinkage over training", missing="No run was metered, or every gradient died.")
    span = holding([value for trace in lines for value in trace["y"]], -0.03, 1.13)
    axis = {"title": {"text": "projection q"}, "range": span, "zeroline": False}
    figures = [
        Figure(
            "precision-q-lines",
            "Projection q of all rounded gradients together over training: 1 keeps the step, 0.5 halves it. Mean over seeds; "
            "no line where the gradient before rounding was zero or not finite.",
            {"": lines},
            {"xaxis": from_zero(lines), "yaxis": axis, "height": 400},
        )
    ]
    return Section(
        "precision-q", "Shrinkage over training",
        ["With g the gradient and g~ the rounded one, q = <g~, g> / ||g||\u00b2."], figures,
    )  # fmt: skip


def _noise_section(study: PrecisionStudy, looks: Mapping[str, Look]) -> Section | None:
    figures = []
    for key, title, pick in (
        ("dead", "dead entries, %", lambda own: own.dead),
        ("overflow", "overflowing entries, %", lambda own: own.overflow),
        ("noise", "noise to signal, %", lambda own: own.noise),
    ):
        traces = _curves(study, looks, pick, 100)
        if traces:
            figures.append(
                Figure(
                    f"precision-{key}",
                    f"{title}, all rounded gradients together; mean over seeds.",
                    {"": traces},
                    {
                        "xaxis": from_zero(traces),
                        "yaxis": {"rangemode": "tozero"},
                        "height": 270,
                        "margin": {"l": 48},
                        "legend": SMALL,
                    },
                    small=True,
                    title=title,
                )
            )
    if not figures:
        return None
    return Section(
        "precision-noise", "Dead entries, overflow, noise",
        ["Dead: non-zero entries that became zero. Overflowing: non-zero entries beyond the format's largest number. Noise to "
         "signal: ||g~ \u2212 q g|| / ||g||. Colours and dashes are those of the figure of q above."],
        figures,
    )  # fmt: skip


def _layers_section(study: PrecisionStudy) -> Section | None:
    found = [
        (label, run, run.shrinkage)
        for label in study.labels
        if (run := next((run for run in study.of(label) if run.shrinkage), None)) is not None
        and run.shrinkage is not None
    ]
    if not found:
        return None
    dead = all(layer.dead_curve for *_, own in found for layer in own.layers)
    drawn, blank = [], []
    for label, run, own in found:
        rows = [layer.dead_curve if dead else layer.curve for layer in own.layers]
        values = [[None if v is None else (100 * v if dead else v) for v in row] for row in rows]
        if any(value is not None for row in values for value in row):
            drawn.append((label, run, own, values))
        else:
            blank.append(label)
    known = [value for *_, rows in drawn for row in rows for value in row if value is not None]
    span = (0.0, 100.0) if dead else _q_span(known)
    what = (
        "share of each layer's gradient that became zero, in percent"
        if dead
        else "projection q of each layer's gradient"
    )
    maps = [
        heat_map(
            f"precision-layers-{place}",
            f"{label}, seed {run.seed}: {what}, the first layer at the top, training from left to right. Blank: the gradient "
            "was zero or not finite.",
            f"{label}, seed {run.seed}",
            layers=[layer.name for layer in own.layers],
            steps=own.steps,
            values=rows,
            span=span,
            quantity="dead, %" if dead else "q",
            small=len(drawn) > WIDE,
        )
        for place, (label, run, own, rows) in enumerate(drawn)
    ]
    rows_of = [
        [Cell(layer.name), Cell(label), number(layer.q, 4), share(layer.dead), share(layer.overflow)]
        for label, _, own in found
        for layer in own.layers
    ]
    head = ["layer", "format", "q", "dead, %", "overflow, %"]
    sentences = [f"Colour: {what}; one scale for all maps. Of each format the first seed is shown."]
    if blank:
        sentences.append(f"Without a map, because every gradient was zero or not finite: {'; '.join(blank)}.")
    return Section(
        "precision-layers", "Layer by layer over training", sentences, maps,
        [Table("precision-layers", "The layers in numbers: medians over the metered steps", head, rows_of, folded=True)],
    )  # fmt: skip


def _q_span(values: Sequence[float]) -> tuple[float, float]:
    return (max(-HIGHEST, min(0.0, *values)), min(HIGHEST, max(1.0, *values))) if len(values) > 1 else (0.0, 1.0)


def _comparison_row(found: Compared) -> list[Cell]:
    return [
        Cell(found.what), Cell(found.label), Cell(found.against),
        quality_cell(found.accuracy, percent=True, signed=True), quality_cell(found.train_loss, percent=False, signed=True),
    ]  # fmt: skip


def _comparisons_section(study: PrecisionStudy) -> Section:
    rows = [_comparison_row(found) for found in comparisons(study)]
    title = "What scaling, rounding, a longer step and compensation change"
    if not rows:
        return Section(
            "precision-effects", title,
            missing="Nothing to compare: --scaling none,tensor,mx, --rounding nearest,stochastic, --steps 1,2 and --compensate "
            "add runs that differ in one thing.",
        )  # fmt: skip
    return Section(
        "precision-effects", title,
        ["Differences between runs that differ in one thing only, paired over seeds, with 95 % Student's t intervals; one seed "
         "has none. An interval that holds zero tells nothing apart."],
        tables=[Table("precision-effects", "Differences, paired over seeds",
                      ["what", "format", "against", "test accuracy, points", "training loss"], rows)],
    )  # fmt: skip


def precision_sections(study: PrecisionStudy, looks: Mapping[str, Look]) -> list[Section]:
    """All that is shown of the network's runs.

    Args:
        study: the runs.
        looks: colour, dash and marker of every label.
    """
    quality_section = Section(
        "precision", "Loss and accuracy by number format",
        ["Training loss: mean of the last epoch. Test: measured once at the end, on the network that the run left. Against "
         "full: difference to full precision with the same seed. q, dead and overflow: medians over the metered steps; least "
         "q: of a single metered step, all layers together; of these, medians over seeds."],
        [_quality_figure(study, looks)], _quality_tables(study, looks),
    )  # fmt: skip
    sections = [
        dead_section(study), quality_section, _shrinkage_section(study, looks), _noise_section(study, looks),
        products_section(study, looks), _layers_section(study), _comparisons_section(study),
    ]  # fmt: skip
    return [section for section in sections if section is not None]

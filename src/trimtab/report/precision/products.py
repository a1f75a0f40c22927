"""Errors of rounding in three parts, by product and layer, and the gap of the loss that they predict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import Cell, Figure, Section, Table, number, plain
from trimtab.report.traces import dots, whiskers
from trimtab.studies.precision.prediction import Predicted, agreement, middle, parts_of, predictions
from trimtab.studies.precision.products import PARTS, ProductError
from trimtab.studies.precision.records import FormatRun, PrecisionStudy
from trimtab.studies.statistics import Estimate
from trimtab.tables.rows import GLOBAL

LOOKS = {
    "scale_bias": ("scale bias", Look("@s1")),
    "dead_zone": ("dead zone", Look("@s2", marker="square")),
    "grid_noise": ("grid noise", Look("@s3", marker="diamond")),
}  # fmt: skip
MADE = {
    "fprop": "fprop: output", "dgrad": "dgrad: gradient of the input", "wgrad": "wgrad: gradient of the weight",
    "gradients": "gradients, rounded",
}  # fmt: skip
"""What each product makes."""


def _percent(value: float | None) -> Cell:
    return number(None if value is None else round(100 * value, 6), 3)


def _gap(found: Estimate | None) -> Cell:
    if found is None:
        return Cell("", None)
    half = "" if found.half is None else f" \u00b1 {found.half:.2g}"
    return Cell(f"{found.mean:+.3g}{half}".replace("-", "\N{MINUS SIGN}"), float(f"{found.mean:.6g}"))


def _parts_figure(rows: Sequence[tuple[str, str, tuple[float | None, ...]]]) -> Figure:
    places = list(range(len(rows)))[::-1]
    traces: list[dict[str, Any]] = []
    for at, (name, look) in enumerate(LOOKS.values()):
        values = [None if parts[1 + at] is None else round(100 * parts[1 + at], 6) for *_, parts in rows]  # type: ignore[operator]
        traces.append(dots(name, look, values, places, "%{fullData.name}: %{x:.3g} %", size=9))
    return Figure(
        "products-parts",
        "Squared error of each product, or of the gradients, in parts of its squared norm, all layers together: median "
        "over the metered steps, then seeds.",
        {"": traces},
        {"xaxis": {"title": {"text": "% of the squared norm"}, "rangemode": "tozero"},
         "yaxis": {"tickvals": places, "ticktext": [plain(f"{label}, {kind}") for label, kind, _ in rows],
                   "range": [-0.6, len(rows) - 0.4], "zeroline": False},
         "height": 130 + 24 * len(rows), "margin": {"l": 40}},
    )  # fmt: skip


def _prediction_figure(found: Sequence[Predicted], looks: Mapping[str, Look]) -> Figure | None:
    traces = [
        dots(
            one.label, looks[one.label], [one.gap.mean], [one.measured.mean],
            "%{fullData.name}: predicted %{x:.3g}, measured %{y:.3g}", size=10,
            error_x=whiskers(looks[one.label], [one.gap.half or 0]),
            error_y=whiskers(looks[one.label], [one.measured.half or 0]),
        )
        for one in found
        if one.gap is not None and one.measured is not None
    ]  # fmt: skip
    if not traces:
        return None
    return Figure(
        "products-prediction",
        "Predicted against measured gap of the loss. Predicted: what forward rounding adds to the loss, to first order, median "
        "up to step 100. Measured: training loss of the last epoch, minus that of full precision with the same seed. Mean over "
        "seeds, whiskers 95 % intervals.",
        {"": traces},
        {"xaxis": {"title": {"text": "predicted rise of the loss"}}, "yaxis": {"title": {"text": "measured gap at the end"}},
         "height": 380, "margin": {"l": 60}},
    )  # fmt: skip


def _layers(runs: Sequence[FormatRun]) -> dict[tuple[str, str], list[ProductError]]:
    found: dict[tuple[str, str], list[ProductError]] = {}
    for run in runs:
        for one in run.errors:
            found.setdefault((one.kind, one.layer), []).append(one)
    return found


def _layer_rows(label: str, runs: Sequence[FormatRun]) -> list[list[Cell]]:
    rows = []
    for (kind, layer), own in _layers(runs).items():
        numbers = {
            name: middle([getattr(one, name) for one in own]) for name in ("q", *PARTS, "oscillating", "loss_gap")
        }
        if layer == GLOBAL or numbers["q"] is None:
            continue
        rows.append(
            [
                Cell(label), Cell(kind), Cell(layer), number(numbers["q"], 4), *(_percent(numbers[name]) for name in PARTS),
                _percent(numbers["oscillating"]), number(numbers["loss_gap"], 3),
            ]
        )  # fmt: skip
    return rows


def carrier(runs: Sequence[FormatRun]) -> str:
    """The layer whose forward rounding raises the loss most, and its share of what all raise it by; empty where none does."""
    gaps = {
        layer: gap
        for (kind, layer), own in _layers(runs).items()
        if kind == "fprop"
        and layer != GLOBAL
        and (gap := middle([one.loss_gap for one in own])) is not None
        and gap > 0
    }
    if not gaps:
        return ""
    worst = max(gaps, key=lambda layer: gaps[layer])
    return f"{worst} ({100 * gaps[worst] / sum(gaps.values()):.0f} %)"


def products_section(study: PrecisionStudy, looks: Mapping[str, Look]) -> Section | None:
    """Errors in parts, what they predict, and the layers in numbers; None where nothing was metered."""
    rows = [(label, kind, parts) for label in study.labels for kind, parts in parts_of(study.of(label)).items()]
    if not rows:
        return None
    found = predictions(study)
    lines = [
        [
            Cell(label, look=looks[label]),
            Cell(MADE[kind]),
            number(parts[0], 4),
            *map(_percent, parts[1:]),
        ]
        for label, kind, parts in rows
    ]
    tables = [
        Table(
            "products", "Errors in parts in numbers",
            ["format", "product", "q", "scale bias, %", "dead zone, %", "grid noise, %"], lines,
        ),
        Table(
            "products-prediction", "Predicted and measured gap of the loss",
            ["format", "predicted", "squared error up to step 100, %", "measured", "layer that raises it most"],
            [
                [
                    Cell(one.label, look=looks[one.label]), _gap(one.gap),
                    _percent(None if one.error is None else one.error.mean), _gap(one.measured),
                    Cell(carrier(study.of(one.label))),
                ]
                for one in found
            ],
        ),
        Table(
            "products-layers", "Layer by layer: medians over the metered steps, then seeds",
            ["format", "product or operand", "layer", "q", "scale bias, %", "dead zone, %", "grid noise, %", "oscillating, %",
             "rise of the loss"],
            [row for label in study.labels for row in _layer_rows(label, study.of(label))], folded=True,
        ),
    ]  # fmt: skip
    sentences = [
        "Rounded gradients are held against those before; products of rounded operands, as a recipe has them, against the "
        "product of operands that are not rounded. Scale bias: what survives is too small or too large as a whole. Dead zone: "
        "what became zero. Grid noise: the rest. The three add up to the squared error."
    ]
    for words, rank in (
        ("predicted rise of the loss", agreement(found, lambda one: one.gap)),
        ("squared error", agreement(found, lambda one: one.error)),
    ):
        if rank is not None:
            signed = f"{rank:+.2f}".replace("-", "\N{MINUS SIGN}")
            sentences.append(f"Rank correlation of the {words} early on with the measured gap: {signed}.")
    figure = _prediction_figure(found, looks)
    return Section(
        "products", "Errors in three parts, and the loss they predict", sentences,
        [_parts_figure(rows), *([] if figure is None else [figure])], tables,
    )  # fmt: skip

"""Where gradients die: formats by layers, the verdict of each format, its worst layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.palette import SCALE, Look, on_scale, text_on
from trimtab.report.parts import MINUS, Cell, Figure, Section, Table, Tile, Verdict, plain
from trimtab.studies.precision.records import PrecisionStudy
from trimtab.studies.precision.verdict import FormatVerdict, dead_layers, verdict_words, verdicts, worst_words
from trimtab.studies.statistics import Estimate

WRITTEN = 160
"""Cells up to which each has its number written into it."""
TITLE = "Where gradients die"


def _evidence(one: FormatVerdict) -> str:
    accuracy, to_full = one.quality.accuracy, one.quality.to_full
    if accuracy is None:
        return "no seed finished"
    change = "" if to_full is None else f" ({100 * to_full.mean:+.1f})".replace("-", MINUS)
    return f"{100 * accuracy.mean:.1f} %{change}" + (f"; plainly it {one.plainly}" if one.plainly else "")


def precision_verdict(study: PrecisionStudy, looks: Mapping[str, Look], most: int = 6) -> Verdict:
    """Which formats train, which with help, which die where."""
    found = verdicts(study)
    tiles = [
        Tile(one.format, one.words, _evidence(one), "" if one.trains else "bad", looks[one.label])
        for one in found[:most]
    ]
    return Verdict(verdict_words(study, found) if found else study.headline, tiles)


def _points(found: Estimate | None) -> Cell:
    if found is None:
        return Cell("", None)
    text = f"{100 * found.mean:+.1f}".replace("-", MINUS) + (
        "" if found.half is None else f" \u00b1 {100 * found.half:.1f}"
    )
    mark = ("gain" if found.mean > 0 else "harm") if found.excludes_zero else ""
    return Cell(text, round(100 * found.mean, 4), best=found.excludes_zero, mark=mark)


def _table(study: PrecisionStudy) -> Table:
    rows = []
    for one in verdicts(study):
        accuracy = one.quality.accuracy
        rows.append(
            [
                Cell(one.format), Cell(one.words, note="good" if one.trains else "bad"), Cell(one.label),
                Cell("", None) if accuracy is None else Cell(f"{100 * accuracy.mean:.1f}", round(100 * accuracy.mean, 4)),
                _points(one.quality.to_full), Cell(worst_words(one)),
            ]
        )  # fmt: skip
    head = [
        "format",
        "verdict",
        "by the run",
        "test accuracy, %",
        "against full, points",
        "worst layers when rounded plainly",
    ]
    return Table("verdicts", "The verdict of each format", head, rows, prose=True)


def _labels(values: Sequence[Sequence[float | None]]) -> dict[str, Any]:
    """The numbers written into a map of percents, each black or white by the colour below it."""
    cells = [(x, y, value) for y, row in enumerate(values) for x, value in enumerate(row) if value is not None]
    return {
        "type": "scatter", "mode": "text", "cliponaxis": False, "x": [x for x, *_ in cells], "y": [y for _, y, _ in cells],
        "text": [f"{value:.0f}" for *_, value in cells], "hoverinfo": "skip", "showlegend": False,
        "textfont": {"size": 11, "color": [text_on(on_scale(value / 100)) for *_, value in cells]},
    }  # fmt: skip


def dead_section(study: PrecisionStudy) -> Section:
    """A map of what died by format and layer, and the verdict of each format."""
    table = _table(study)
    known = {label: found for label in study.labels if (found := dead_layers(study.of(label)))}
    sentences = [
        "A format trains when all its seeds finished within 2 points of full precision's test accuracy; it dies in a layer "
        "where half or more of the gradient's non-zero entries became zero (our thresholds)."
    ]
    if not known:
        sentences.append("No run was metered, so nothing is known of single layers.")
        return Section("precision-map", "The verdict of each format", sentences, tables=[table])
    layers = list(dict.fromkeys(layer.name for found in known.values() for layer in found))
    values = [[{la.name: 100 * la.dead for la in found}.get(name) for name in layers] for found in known.values()]
    written = [_labels(values)] if len(layers) * len(known) <= WRITTEN else []
    names = [name.removesuffix(".weight") for name in layers]
    bar = {"thickness": 10, "outlinewidth": 0, "title": {"text": "dead, %", "side": "top", "font": {"size": 11}}}
    labels = [plain(label if len(label) <= 22 else label[:21] + "\u2026") for label in known]
    figure = Figure(
        "precision-map",
        "Share of each layer's non-zero gradient entries that rounding made zero: median over the metered steps, then seeds. "
        "The input's layer stands at the left.",
        {"": [
            {"type": "heatmap", "x": list(range(len(layers))), "y": list(range(len(known))), "z": values,
             "zmin": 0, "zmax": 100, "colorscale": SCALE, "colorbar": bar, "hoverongaps": False,
             "customdata": [[[plain(name), plain(label)] for name in names] for label in known],
             "hovertemplate": "%{customdata[1]}, %{customdata[0]}<br>dead <b>%{z:.1f} %</b><extra></extra>"},
            *written,
        ]},
        {
            "xaxis": {"tickvals": list(range(len(layers))), "ticktext": [plain(name[-18:]) for name in names], "tickangle": -40,
                      "range": [-0.5, len(layers) - 0.5], "showgrid": False, "zeroline": False, "tickfont": {"size": 11}},
            "yaxis": {"tickvals": list(range(len(known))), "ticktext": labels, "showgrid": False, "zeroline": False,
                      "range": [len(known) - 0.5, -0.5], "tickfont": {"size": 11}},
            "height": min(130 + 24 * len(known), 430), "margin": {"l": 40, "b": 70},
        },
    )  # fmt: skip
    return Section("precision-map", TITLE, sentences, [figure], [table])

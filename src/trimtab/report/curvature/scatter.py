"""Accuracy against sharpness at each sparsity, and whether flatter networks bear pruning better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import MINUS, Cell, Figure, Section, Table, halvings, log_ticks
from trimtab.report.traces import SMALL, dots
from trimtab.studies.curvature.conclusions import (
    MEASURES,
    SCALE_FREE,
    RankCorrelation,
    robustness,
)
from trimtab.studies.curvature.records import CurvatureRow, CurvatureSummary
from trimtab.studies.statistics import sparsity_label


def _ends(values: Sequence[float]) -> dict[str, Any]:
    """A logarithmic axis that holds the values with room for their marks."""
    low, high = math.log10(min(values)), math.log10(max(values))
    room = 0.07 * (high - low) or 0.1
    return {"range": [low - room, high + room], **log_ticks(values)}


def _around(values: Sequence[float]) -> dict[str, Any]:
    """An axis that holds the values with room for their marks, a point of percent or more."""
    if not values:
        return {}
    room = max(0.08 * (max(values) - min(values)), 0.01)
    return {"range": [min(values) - room, max(values) + room]}


def _scatter(
    rows: Sequence[CurvatureRow], found: Mapping[str, Look], name: str, sparsity: float, metric: str
) -> Figure:
    text, value = MEASURES[name]
    own = [row for row in rows if row.sparsity == sparsity and value(row) > 0]
    traces = [
        dots(
            method, look, [value(row) for row in own if row.method == method],
            [row.accuracy for row in own if row.method == method],
            "%{fullData.name}, seed %{customdata[0]}<br>%{x:.3g}: <b>%{y:.1%}</b>", size=9,
            customdata=[[row.seed] for row in own if row.method == method],
        )
        for method, look in found.items()
    ]  # fmt: skip
    label = sparsity_label(sparsity)
    return Figure(
        f"scatter-{name}-{halvings(sparsity):.3f}".replace(".", "_"),
        f"{metric.capitalize()} against {text} of the same networks, {label}.",
        {"": [trace for trace in traces if trace["x"]]},
        {
            "xaxis": {
                "title": {"text": text.replace("||w||\u00b2", "|w|\u00b2")},
                "type": "log",
                "zeroline": False,
                "nticks": 5,
                **(_ends([value(row) for row in own]) if own else {}),
            },
            "yaxis": {
                "tickformat": ".3~p",
                "title": {"text": metric},
                "zeroline": False,
                **_around([row.accuracy for row in own]),
            },
            "height": 290,
            "margin": {"l": 55},
            "legend": SMALL,
        },
        small=True,
        title=f"{label.capitalize()}: {text}",
    )


def _correlation(found: RankCorrelation) -> Cell:
    text = f"{found.value:+.2f}".replace("-", MINUS)
    if found.low is not None and found.high is not None:
        text += f" ({found.low:+.2f} to {found.high:+.2f})".replace("-", MINUS)
    return Cell(text, round(found.value, 4), best=found.excludes_zero)


def scatter_section(summary: CurvatureSummary, found: Mapping[str, Look]) -> Section:
    """Accuracy against sharpness at each sparsity, and rank correlations of dense sharpness with what pruning leaves."""
    rows, metric = summary.rows, summary.metric
    sparsities = sorted({row.sparsity for row in rows})
    figures = [
        _scatter(rows, found, name, s, metric) for s in sparsities for name in ("sharpness", "adaptive_sharpness")
    ]
    sentences = [
        f"Each point is one network: its {metric} on the {rows[0].split} split against its own sharpness on training images."
    ]
    related = [item for item in robustness(rows, summary.pruned) if item.kept.low is not None]
    tables = []
    if not related:
        sentences.append("Rank correlations need at least four methods for an interval, and are not given without one.")
    else:
        lines = [
            [
                Cell(MEASURES[item.measure][0]), Cell("relative" if item.measure in SCALE_FREE else "raw"),
                Cell(sparsity_label(item.sparsity), item.sparsity), _correlation(item.kept), _correlation(item.accuracy),
            ]
            for item in related
        ]  # fmt: skip
        head = [
            "measure of the dense network",
            "scale",
            "pruned to",
            f"with the change of {metric}",
            f"with {metric} left",
        ]
        first = related[0].kept
        tables.append(
            Table(
                "robustness",
                f"Does flatter go with more robust? Spearman's rank correlation over {first.networks} networks of "
                f"{first.methods} methods; bold: the interval excludes 0",
                head,
                lines,
                folded=len(lines) > 12,
            )
        )
        sentences.append(
            "Negative: flatter networks lose less. Intervals: 95 %, methods drawn with replacement, each with all of its seeds "
            "(seeds of one method are no independent evidence on how methods differ)."
        )
    return Section("scatter", f"{metric.capitalize()} against sharpness", sentences, figures, tables)

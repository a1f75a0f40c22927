"""Curvature of trained networks: the measures, eigenvalues with their residuals, spectra, accuracy against sharpness."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.report.curvature.landscape import landscape_sections
from trimtab.report.curvature.scatter import scatter_section
from trimtab.report.curvature.track import track_section
from trimtab.report.curvature.verdict import curvature_verdict, shown_methods
from trimtab.report.numerals import column, intervals, spans
from trimtab.report.page import as_yaml, render_sections
from trimtab.report.palette import Look, looks
from trimtab.report.parts import (
    HALVES,
    Cell,
    Figure,
    Section,
    Table,
    halvings,
    listed,
    log_ticks,
    seeds_sentence,
    series_of,
    sparsity_axis,
)
from trimtab.report.traces import SMALL, dots, line, whiskers
from trimtab.studies.curvature.conclusions import MEASURES, SCALE_FREE, ratio_to
from trimtab.studies.curvature.records import CurvatureRow, CurvatureSummary
from trimtab.studies.statistics import Estimate, baseline_of, estimate, sparsity_label

HEADS = [
    text.replace("largest ", "").replace(" x ", "\u00b7").replace("sharpness", "sharp.")
    for text, _ in MEASURES.values()
]
"""Of columns: short, so that a table of all measures fits the page."""
FLOOR = 1e-6  # of the density's greatest value: what is drawn of it on a logarithmic axis [ours]


def _measure_tables(
    rows: Sequence[CurvatureRow], sparsity: float, place: int, looks: Mapping[str, Look]
) -> list[Table]:
    """The measures that change with the scale of the weights, and those relative to it: two tables that fit a page."""
    own = [row for row in rows if row.sparsity == sparsity]
    groups = {
        method: [row for row in own if row.method == method] for method in dict.fromkeys(row.method for row in own)
    }
    columns: dict[str, Callable[[CurvatureRow], float]] = {
        "accuracy, %": lambda row: 100 * row.accuracy,
        "loss": lambda row: row.loss,
        **dict(zip(HEADS, (value for _, value in MEASURES.values()), strict=True)),
        "||w||": lambda row: row.weight_norm,
    }
    free = [head for head, name in zip(HEADS, MEASURES, strict=True) if name in SCALE_FREE]
    state = sparsity_label(sparsity).capitalize()
    tables = []
    for name, caption, heads in (
        ("measures", f"{state}: mean over seeds", [head for head in columns if head not in free]),
        ("relative", f"{state}: relative to the size of the weights", free),
    ):
        cells = []
        for head in heads:
            found = [estimate(columns[head](row) for row in seeds) for seeds in groups.values()]
            texts = spans([one.mean for one in found], [one.half for one in found])
            cells.append([Cell(text, float(f"{one.mean:.6g}")) for text, one in zip(texts, found, strict=True)])
        lines = [[Cell(method, look=looks[method]), *line] for method, *line in zip(groups, *cells, strict=True)]
        tables.append(Table(f"{name}-{place}", caption, ["method", *heads], lines))
    return tables


def _ratios(found: Sequence[Estimate | None]) -> list[Cell]:
    """A column of ratios, from their logarithms."""
    exp = [None if one is None else math.exp(one.mean) for one in found]
    ends = [
        (None, None) if one is None or one.low is None or one.high is None else (math.exp(one.low), math.exp(one.high))
        for one in found
    ]
    return [
        Cell(text, None if value is None else float(f"{value:.6g}"), best=one is not None and one.excludes_zero)
        for text, value, one in zip(intervals(exp, ends), exp, found, strict=True)
    ]


def _ratio_table(rows: Sequence[CurvatureRow], baseline: str) -> Table:
    head = ["method", "sparsity", *HEADS]
    methods = [method for method in dict.fromkeys(row.method for row in rows) if method != baseline]
    pairs = [(method, sparsity) for method in methods for sparsity in sorted({row.sparsity for row in rows})]
    columns = [_ratios([ratio_to(rows, method, baseline, name, at) for method, at in pairs]) for name in MEASURES]
    lines = [
        [Cell(method), Cell(sparsity_label(at), at), *(own[place] for own in columns)]
        for place, (method, at) in enumerate(pairs)
    ]
    return Table(
        "ratios",
        f"Ratio to {baseline}, geometric mean paired over seeds, with its 95 % interval; bold: the interval excludes 1",
        head,
        lines,
    )


def measures_section(summary: CurvatureSummary, found: Mapping[str, Look]) -> Section:
    """What was measured, over seeds, and the ratios to the baseline."""
    rows, settings = summary.rows, summary.settings
    sparsities = sorted({row.sparsity for row in rows})
    tables = [table for at, sparsity in enumerate(sparsities) for table in _measure_tables(rows, sparsity, at, found)]
    methods = [row.method for row in rows]
    if len(set(methods)) > 1:
        tables.append(_ratio_table(rows, baseline_of(methods)))
    counts = [sum((r.method, r.sparsity) == (row.method, row.sparsity) for r in rows) for row in rows]
    sentences = [
        f"Sharpness: the greatest rise of the loss found in {settings.ascent_steps} ascent step(s) within ||e|| <= "
        f"{settings.rho:g}; adaptive: within ||e / |w||| <= {settings.adaptive_rho:g}. Eigenvalue, trace and SAM sharpness "
        "change when weights are rescaled, as penalties and BatchNorm allow without another function; the measures "
        "relative to the size of the weights do not.",
        seeds_sentence(counts, HALVES),
    ]
    return Section("measures", "Measures", sentences, tables=tables)


def _beside(sparsities: Sequence[float], count: int) -> list[float]:
    """Distances from a sparsity's place at which `count` methods stand beside each other and not among the next one's."""
    places = sorted({halvings(sparsity) for sparsity in sparsities})
    gap = min((b - a for a, b in itertools.pairwise(places)), default=1.0)
    step = min(0.012 * ((places[-1] - places[0]) or 1.0), 0.6 * gap / count)
    return [step * (at - (count - 1) / 2) for at in range(count)]


def _eigenvalue_traces(rows: Sequence[CurvatureRow], found: Mapping[str, Look]) -> list[dict[str, Any]]:
    traces = []
    beside = _beside([row.sparsity for row in rows], len(found))
    for shift, (method, look) in zip(beside, found.items(), strict=True):
        points = [
            (halvings(row.sparsity) + shift, value, residual, row)
            for row in rows
            if row.method == method
            for value, residual in zip(row.eigenvalues, row.residuals, strict=True)
        ]
        traces.append(
            dots(
                method, look, [x for x, *_ in points], [value for _, value, *_ in points],
                "%{fullData.name}, seed %{customdata[0]}, %{customdata[1]}<br><b>%{y:.4g}</b> ± %{customdata[2]} (residual)",
                error_y=whiskers(look, [residual for _, _, residual, _ in points], thickness=1.2, width=3),
                customdata=[[row.seed, sparsity_label(row.sparsity), f"{residual:.2g}"] for *_, residual, row in points],
            )
        )  # fmt: skip
    return traces


def _value_axis(rows: Sequence[CurvatureRow], *, positive: bool) -> dict[str, Any]:
    """Ends that hold every point with its bar, logarithmic where all are positive; a bar that crosses zero ends at the axis."""
    pairs = [pair for row in rows for pair in zip(row.eigenvalues, row.residuals, strict=True)]
    values = [value for value, _ in pairs]
    high = max(value + residual for value, residual in pairs)
    if positive:
        low = min(value - residual if residual < 0.9 * value else value for value, residual in pairs)
        room = 0.06 * math.log10(high / low) or 0.1
        return {"type": "log", "range": [math.log10(low) - room, math.log10(high) + room], **log_ticks([low, high])}
    low = min(value - residual for value, residual in pairs)
    room = 0.06 * (high - low) or abs(values[0]) or 1.0
    return {"range": [low - room, high + room]}


def eigenvalues_section(summary: CurvatureSummary, found: Mapping[str, Look]) -> Section:
    """The largest eigenvalues, each within its residual."""
    rows = summary.rows
    traces = _eigenvalue_traces(rows, found)
    positive = all(value > 0 for row in rows for value in row.eigenvalues)
    figure = Figure(
        "eigenvalues",
        "Largest eigenvalues of the Hessian of the training loss, one point per network; an eigenvalue lies within its "
        "bar, the residual of the Lanczos vector.",
        {"": traces},
        {
            "xaxis": sparsity_axis([row.sparsity for row in rows], beside=[x for trace in traces for x in trace["x"]]),
            "yaxis": {
                "title": {"text": "largest eigenvalue"},
                "zeroline": False,
                **_value_axis(rows, positive=positive),
            },
            "height": 420,
        },
    )
    head = ["method", "seed", "sparsity", "largest eigenvalue", "residual", "trace", "standard error", "products",
            "converged"]  # fmt: skip
    measured = [
        [(text, float(value)) for text, value in zip(column(values), values, strict=True)]
        for values in (
            [row.eigenvalues[0] for row in rows], [row.residuals[0] for row in rows], [row.trace for row in rows],
            [row.trace_error for row in rows],
        )
    ]  # fmt: skip
    lines = [
        [
            Cell(row.method, look=found[row.method]), Cell(str(row.seed), row.seed),
            Cell(sparsity_label(row.sparsity), row.sparsity), *(Cell(text, value) for text, value in numbers),
            Cell(str(row.products), row.products), Cell("yes" if row.converged else "no"),
        ]
        for row, numbers in zip(rows, zip(*measured, strict=True), strict=True)
    ]  # fmt: skip
    table = Table("eigenvalues", "Every network", head, lines, folded=True)
    return Section("eigenvalues", "Largest eigenvalues", figures=[figure], tables=[table])


def density_section(summary: CurvatureSummary, found: Mapping[str, Look]) -> Section:
    """The spectrum of the first seed of each method at each sparsity, on a logarithmic axis."""
    title = "Spectral density"
    if not summary.densities:
        return Section("density", title, missing="Not measured: --density-probes 2 or more adds it.")
    figures = []
    for place, sparsity in enumerate(sorted({one.sparsity for one in summary.densities})):
        traces = []
        for method, look in found.items():
            one = next((d for d in summary.densities if (d.method, d.sparsity) == (method, sparsity)), None)
            if one is None:
                continue
            least = FLOOR * max(one.values)
            grid = [one.start + at * one.step for at in range(len(one.values))]
            shown = [value if value >= least else None for value in one.values]
            traces.append(line(method, look, grid, shown, "%{fullData.name}: %{y:.2g} at %{x:.3g}"))
        figures.append(
            Figure(
                f"density-{place}",
                f"Spectral density of the Hessian, {sparsity_label(sparsity)}, first seed of each method.",
                {"": traces},
                {
                    "xaxis": {"title": {"text": "eigenvalue"}, "zeroline": False},
                    "yaxis": {"type": "log", "exponentformat": "power", "title": {"text": "density"}},
                    "height": 330,
                    "margin": {"l": 60},
                    "legend": SMALL,
                },
                small=True,
                title=sparsity_label(sparsity).capitalize(),
            )
        )
    settings = summary.settings
    sentences = [
        f"Stochastic Lanczos quadrature: {settings.density_probes} start vectors, {settings.density_steps} steps; each node is "
        "drawn as a Gaussian, so a single eigenvalue is a bump as wide as that. Pruned networks have one eigenvalue of exactly "
        "zero for each weight that is gone. The first seed of each method is shown."
    ]
    return Section("density", title, sentences, figures)


def curvature_sections(summary: CurvatureSummary) -> list[Section]:
    """All that is shown of measured networks.

    Args:
        summary: what `trimtab curvature` found.
    """
    methods = [row.method for row in summary.rows]
    found = looks(methods, baseline_of(methods))
    return [
        eigenvalues_section(summary, found),
        scatter_section(summary, found),
        measures_section(summary, found),
        density_section(summary, found),
        *landscape_sections(summary.landscapes),
        *([track_section(summary.tracks, found)] if summary.tracks else []),
    ]


def render_curvature(summary: CurvatureSummary, path: Path) -> Path:
    """Write what `trimtab curvature` found as one self-contained page.

    Args:
        summary: the measured networks.
        path: the file to write.

    Returns:
        `path`.

    Raises:
        ValueError: no row.
        OSError: the file could not be written.
    """
    if not summary.rows:
        raise ValueError("a page of curvature needs at least one measured network, got none")
    facts = [
        ("methods", ", ".join(dict.fromkeys(row.method for row in summary.rows))),
        ("seeds", ", ".join(sorted({str(row.seed) for row in summary.rows}))),
        ("data", str(summary.recipe["data"]["name"])),
        ("model", str(summary.recipe["model"]["name"])),
        ("command", summary.command),
        ("created", summary.created),
        ("hardware", listed(summary.hardware)),
        ("versions", listed(summary.versions)),
    ]
    methods = [row.method for row in summary.rows]
    own = looks(methods, baseline_of(methods))
    return render_sections(
        curvature_sections(summary), path, name=summary.name, verdict=curvature_verdict(summary, own),
        series=series_of(own, shown_methods(summary)), facts=facts,
        recipe=as_yaml(summary.recipe), data=summary.model_dump_json(by_alias=True), file="curvature.json", notes=summary.notes,
        missing=summary.missing, done=len({(row.method, row.seed) for row in summary.rows}),
    )  # fmt: skip

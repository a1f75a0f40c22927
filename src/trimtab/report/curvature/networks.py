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
from trimtab.report.page import as_yaml, render_sections
from trimtab.report.palette import Look, looks
from trimtab.report.parts import (
    HALVES,
    MINUS,
    Cell,
    Figure,
    Section,
    Table,
    halvings,
    listed,
    log_ticks,
    seeds_sentence,
    significant,
    sparsity_axis,
)
from trimtab.report.traces import SMALL, dots, line, whiskers
from trimtab.studies.curvature.conclusions import MEASURES, ratio_to
from trimtab.studies.curvature.records import CurvatureRow, CurvatureSummary
from trimtab.studies.statistics import Estimate, baseline_of, estimate, sparsity_label

HEADS = [
    text.replace("largest ", "").replace(" x ", "\u00b7").replace("sharpness", "sharp.")
    for text, _ in MEASURES.values()
]
"""Of columns: short, so that a table of all measures fits the page."""
FLOOR = 1e-6  # of the density's greatest value: what is drawn of it on a logarithmic axis [ours]


def number(value: float, digits: int = 3) -> str:
    """A number with three digits and a true minus sign."""
    return significant(value, digits).replace("-", MINUS)


def _spread(values: Sequence[float]) -> Cell:
    found = estimate(values)
    text = number(found.mean) if found.half is None else f"{number(found.mean)} ± {number(found.half, 2)}"
    return Cell(text, float(f"{found.mean:.6g}"))


def _measure_table(rows: Sequence[CurvatureRow], sparsity: float, place: int) -> Table:
    own = [row for row in rows if row.sparsity == sparsity]
    head = ["method", "accuracy, %", "loss", *HEADS, "||w||"]
    lines = []
    for method in dict.fromkeys(row.method for row in own):
        seeds = [row for row in own if row.method == method]
        columns: list[Callable[[CurvatureRow], float]] = [
            lambda row: 100 * row.accuracy,
            lambda row: row.loss,
            *(value for _, value in MEASURES.values()),
            lambda row: row.weight_norm,
        ]
        lines.append([Cell(method), *(_spread([column(row) for row in seeds]) for column in columns)])
    return Table(f"measures-{place}", f"{sparsity_label(sparsity).capitalize()}: mean over seeds", head, lines)


def _ratio(found: Estimate | None) -> Cell:
    if found is None:
        return Cell("", None)
    text = number(math.exp(found.mean))
    if found.low is not None and found.high is not None:
        text += f" ({number(math.exp(found.low))} to {number(math.exp(found.high))})"
    return Cell(text, float(f"{math.exp(found.mean):.6g}"), best=found.excludes_zero)


def _ratio_table(rows: Sequence[CurvatureRow], baseline: str) -> Table:
    head = ["method", "sparsity", *HEADS]
    lines = []
    for method in dict.fromkeys(row.method for row in rows):
        for sparsity in sorted({row.sparsity for row in rows}):
            if method != baseline:
                cells = [_ratio(ratio_to(rows, method, baseline, name, sparsity)) for name in MEASURES]
                lines.append([Cell(method), Cell(sparsity_label(sparsity), sparsity), *cells])
    return Table(
        "ratios",
        f"Ratio to {baseline}, geometric mean paired over seeds, with its 95 % interval; bold: the interval excludes 1",
        head,
        lines,
    )


def measures_section(summary: CurvatureSummary) -> Section:
    """What was measured, over seeds, and the ratios to the baseline."""
    rows, settings = summary.rows, summary.settings
    tables = [_measure_table(rows, sparsity, at) for at, sparsity in enumerate(sorted({r.sparsity for r in rows}))]
    methods = [row.method for row in rows]
    if len(set(methods)) > 1:
        tables.append(_ratio_table(rows, baseline_of(methods)))
    counts = [sum((r.method, r.sparsity) == (row.method, row.sparsity) for r in rows) for row in rows]
    sentences = [
        f"Sharpness: the greatest rise of the loss found in {settings.ascent_steps} ascent step(s) within ||e|| <= "
        f"{settings.rho:g}; adaptive: within ||e / |w||| <= {settings.adaptive_rho:g}. Eigenvalue, trace and SAM sharpness "
        "change when weights are rescaled, as penalties and BatchNorm allow without another function; the last three "
        "columns are relative to the size of the weights.",
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
                "title": {"text": "eigenvalue"},
                "type": "log" if positive else "linear",
                "zeroline": False,
                **(log_ticks([value for row in rows for value in row.eigenvalues]) if positive else {}),
            },
            "height": 420,
        },
    )
    head = ["method", "seed", "sparsity", "largest eigenvalue", "residual", "trace", "standard error", "products",
            "converged"]  # fmt: skip
    lines = [
        [
            Cell(row.method), Cell(str(row.seed), row.seed), Cell(sparsity_label(row.sparsity), row.sparsity),
            Cell(number(row.eigenvalues[0], 4), row.eigenvalues[0]), Cell(number(row.residuals[0], 2), row.residuals[0]),
            Cell(number(row.trace, 4), row.trace), Cell(number(row.trace_error, 2), row.trace_error),
            Cell(str(row.products), row.products), Cell("yes" if row.converged else "no"),
        ]
        for row in rows
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
        measures_section(summary),
        eigenvalues_section(summary, found),
        density_section(summary, found),
        *landscape_sections(summary.landscapes),
        scatter_section(summary, found),
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
    return render_sections(
        curvature_sections(summary), path, name=summary.name, headline=summary.headline, facts=facts,
        recipe=as_yaml(summary.recipe), data=summary.model_dump_json(by_alias=True), file="curvature.json", notes=summary.notes,
        missing=summary.missing, done=len({(row.method, row.seed) for row in summary.rows}),
    )  # fmt: skip

"""How each method distributes its weights: the broadening, and the mass near zero."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import HALVES, MINUS, Cell, Figure, Section, Table, seeds_sentence
from trimtab.report.traces import line
from trimtab.report.weights.study import Study
from trimtab.studies.statistics import Estimate, estimate, paired_difference
from trimtab.studies.summary import Histogram

GAUSSIAN_VARIANCE = 0.5708  # pi / 2 - 1: Var(|w|) / (mean |w|)^2 of Gaussian weights


def _density(histograms: Sequence[Histogram]) -> tuple[list[float], list[float]]:
    """Middles and probability density, pooled over the seeds whose bins are the first one's."""
    edges = histograms[0].edges
    counts = [0] * (len(edges) - 1)
    for histogram in histograms:
        if histogram.edges == edges:
            counts = [a + b for a, b in zip(counts, histogram.counts, strict=True)]
    total = sum(counts) or 1
    widths = [b - a for a, b in itertools.pairwise(edges)]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(edges)]
    return middles, [count / total / width for count, width in zip(counts, widths, strict=True)]


def _trace(method: str, own: Sequence[Histogram], look: Look, *, log: bool) -> dict[str, Any]:
    middles, density = _density(own)
    y = [(value or None) if log else value for value in density]
    return line(method, look, middles, y, "%{fullData.name}: density %{y:.3g} at %{x:.2f}", shape="hvh")


def _number(found: Estimate, digits: int, scale: float = 1.0, *, signed: bool = False) -> str:
    text = f"{scale * found.mean:{'+' if signed else ''}.{digits}f}".replace("-", MINUS)
    return text if found.half is None else f"{text} ± {scale * found.half:.{digits}f}"


def weights_section(study: Study) -> Section:
    """Overlaid distributions and the numbers that sum them up."""
    title, found = "Distribution of the weights", study.summary.histograms
    if not found:
        return Section("weights", title, missing="No weight distributions were kept with these runs.")
    groups = {m: [h for h in found if h.method == m] for m in study.looks if any(h.method == m for h in found)}
    states = {
        scale: [_trace(m, own, study.looks[m], log=scale == "log") for m, own in groups.items()]
        for scale in ("log", "linear")
    }
    figure = Figure(
        "weights",
        "Distribution of the prunable weights of the dense networks, each weight divided by the root mean square of its layer, "
        "seeds pooled; the outermost bins hold what lies beyond them.", states,
        {
            "xaxis": {"title": {"text": "weight / root mean square of its layer"}, "zeroline": False},
            "yaxis": {"title": {"text": "probability density"}, "rangemode": "tozero"}, "height": 420,
        },
        layouts={"log": {"yaxis": {"title": {"text": "probability density (log)"}, "type": "log", "exponentformat": "power",
                           "dtick": 1}}},
        switch="scale",
    )  # fmt: skip
    rows = []
    base = groups.get(study.baseline, [])
    for method, own in groups.items():
        near = estimate(h.near_zero for h in own)
        variance = estimate(h.variance_of_magnitude for h in own)
        size = estimate(h.root_mean_square for h in own)
        difference = paired_difference([(h.seed, h.near_zero) for h in own], [(h.seed, h.near_zero) for h in base])
        rows.append(
            [
                Cell(method, look=study.looks[method]),
                Cell(_number(near, 2, 100), round(100 * near.mean, 4)),
                Cell("", None)
                if difference is None or method == study.baseline
                else Cell(_number(difference, 2, 100, signed=True), round(100 * difference.mean, 4)),
                Cell(_number(variance, 3), round(variance.mean, 6)),
                Cell(_number(size, 4), round(size.mean, 8)),
                Cell(str(near.n), near.n),
            ]
        )
    head = [
        "method", "near zero, %", f"difference to {study.baseline}, points", "variance of magnitude", "root mean square",
        "seeds",
    ]  # fmt: skip
    sentences = [
        "Near zero: share of the weights below a tenth of their layer's root mean square. Variance of magnitude: "
        f"Var(|w|) / (mean |w|)², averaged over layers; Gaussian weights have {GAUSSIAN_VARIANCE:.3f}, a broader "
        "distribution has more. " + seeds_sentence([len(own) for own in groups.values()], HALVES)
    ]
    return Section(
        "weights",
        title,
        sentences,
        [figure],
        [Table("weights", "The distributions in numbers", head, rows)],
        switch="scale",
    )

"""What a method costs and saves: file size, latency, cost of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import Cell, Figure, Section, Table, bytes_column, halvings, plain, sparsity_axis
from trimtab.report.traces import line
from trimtab.report.weights.study import Study
from trimtab.studies.sizes import bytes_text
from trimtab.studies.statistics import sparsity_label
from trimtab.studies.summary import Latency

FORMS = (
    ("dense file", "dense_bytes", Look("@s0")),
    ("gzip of the pruned dense file", "gzip_bytes", Look("@s2", "dash", "square")),
    ("sparse file", "sparse_bytes", Look("@s1", "solid", "diamond")),
    ("entropy bound", "bound_bytes", Look("@s3", "dot", "x")),
)
FRACTIONS = [0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]
RATIOS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100]


def _series(name: str, look: Look, x: list[float], y: list[float], hover: str, data: list[list[str]]) -> dict[str, Any]:
    return line(
        name,
        look,
        x,
        y,
        f"%{{fullData.name}}, %{{customdata[0]}}: {hover}",
        points=True,
        width=2.5,
        size=8,
        customdata=data,
    )


def storage_section(study: Study) -> Section:
    """The file: sparse against dense, gzip and the entropy bound."""
    title, stored = "File size", study.summary.storage
    if not stored:
        return Section("storage", title, missing="No sparse file was written, so there are no file sizes to show.")
    stored = [item for method in study.looks for item in stored if item.method == method] or list(stored)
    shown = stored[0].method
    own = sorted((item for item in stored if item.method == shown), key=lambda item: item.sparsity)
    x = [halvings(item.sparsity) for item in own]
    traces = []
    for name, field, look in FORMS:
        sizes = [getattr(item, field) for item in own]
        shares = [size / item.dense_bytes for size, item in zip(sizes, own, strict=True)]
        data = [[sparsity_label(item.sparsity), bytes_text(size)] for size, item in zip(sizes, own, strict=True)]
        traces.append(_series(name, look, x, shares, "%{customdata[1]} (%{y:.1%})", data))
    last = own[-1]
    figure = Figure(
        "storage",
        f"Size of the file relative to the dense one ({shown}); it depends on the sparsity, hardly on the method.",
        {"": traces},
        {
            "xaxis": sparsity_axis([item.sparsity for item in own]),
            "yaxis": {"title": {"text": "share of the dense file"}, "type": "log",
                      "tickvals": FRACTIONS, "ticktext": [f"{100 * f:g}%" for f in FRACTIONS]},
            "height": 380,
        },
    )  # fmt: skip
    ordered = sorted(stored, key=lambda item: (list(study.looks).index(item.method), item.sparsity))
    texts = [bytes_column([getattr(item, field) for item in ordered]) for _, field, _ in FORMS]
    rows = [
        [
            Cell(item.method),
            Cell(sparsity_label(item.sparsity), item.sparsity),
            *(Cell(text[at], getattr(item, field)) for text, (_, field, _) in zip(texts, FORMS, strict=True)),
            Cell(f"{item.dense_bytes / item.sparse_bytes:.2f}x", round(item.dense_bytes / item.sparse_bytes, 4)),
            Cell(f"{item.bound_bytes / item.sparse_bytes:.1%}", round(item.bound_bytes / item.sparse_bytes, 4)),
        ]
        for at, item in enumerate(ordered)
    ]
    head = ["method", "sparsity", "dense", "gzip", "sparse", "bound", "smaller", "of the bound reached"]
    sentence = (
        f"At {sparsity_label(last.sparsity)} the sparse file of {shown} takes {bytes_text(last.sparse_bytes)} instead of "
        f"{bytes_text(last.dense_bytes)}: {last.dense_bytes / last.sparse_bytes:.1f}x smaller"
    )
    if last.gzip_bytes:
        sentence += f" (gzip: {last.dense_bytes / last.gzip_bytes:.1f}x)"
    return Section(
        "storage", title, [sentence + "."], [figure], [Table("storage", "File sizes", head, rows, folded=True)]
    )


def break_even(points: Sequence[Latency]) -> str:
    """Where the sparse form of one layer begins to be faster, in words.

    Between the last sparsity that is not faster and the first after which all are, the logarithm of the ratio is
    interpolated over the logarithm of the density [ours].
    """
    ordered = sorted(points, key=lambda item: item.sparsity)
    if not any(item.faster for item in ordered):
        return f"not faster at any sparsity measured (up to {sparsity_label(ordered[-1].sparsity)})"
    slow = [place for place, item in enumerate(ordered) if not item.faster]
    if not slow:
        return f"faster at every sparsity measured (from {sparsity_label(ordered[0].sparsity)})"
    if slow[-1] == len(ordered) - 1:
        return f"not faster at the highest sparsity measured ({sparsity_label(ordered[-1].sparsity)})"
    below, above = ordered[slow[-1]], ordered[slow[-1] + 1]
    low, high = math.log(below.ratio), math.log(above.ratio)
    share = -low / (high - low) if high > low else 1.0
    x = halvings(below.sparsity) + share * (halvings(above.sparsity) - halvings(below.sparsity))
    return f"faster from about {100 * (1 - 10**-x):.0f} %, not faster below"


def _verdict(point: Latency) -> str:
    return "faster" if point.faster else "not faster"


def latency_section(study: Study) -> Section:
    """Where zeros buy time, and where they do not."""
    title, points = "Latency", study.summary.latencies
    if not points:
        return Section("latency", title, missing="No latency was measured, so nothing can be said about speed.")
    groups: dict[tuple[str, int], list[Latency]] = {}
    for point in points:
        groups.setdefault((point.what, point.batch), []).append(point)
    sparsities = [point.sparsity for point in points]
    axis = sparsity_axis(sparsities)
    traces, sentences, rows = [], [], []
    styles = (Look("@s1"), Look("@s2", "dash", "square"), Look("@s3", "dot", "diamond"), Look("@s4", "dashdot", "x"))
    for place, ((what, batch), own) in enumerate(groups.items()):
        own = sorted(own, key=lambda item: item.sparsity)
        name = f"{what}, batch {batch}"
        x, data = [halvings(i.sparsity) for i in own], [[sparsity_label(i.sparsity), _verdict(i)] for i in own]
        look = styles[place % len(styles)]
        traces.append(_series(name, look, x, [i.ratio for i in own], "%{y:.2f}x, %{customdata[1]}", data))
        sentences.append(f"{name}: {break_even(own)}.")
        rows += [
            [
                Cell(what), Cell(str(batch), batch), Cell(sparsity_label(i.sparsity), i.sparsity),
                Cell(f"{i.ratio:.2f}x", round(i.ratio, 4)),
                Cell(_verdict(i), note="good" if i.faster else "bad"),
            ]
            for i in own
        ]  # fmt: skip
    traces.insert(0, line("break-even", Look("@ink", "4px,3px"), axis["range"], [1, 1], None, width=1.5))
    figure = Figure(
        "latency",
        "Time of a dense layer over the time of its sparse (CSR) form, on the machine that ran the study; above 1 the "
        "sparse form is faster.", {"": traces},
        {
            "xaxis": axis,
            "yaxis": {"title": {"text": "dense time / sparse time"}, "type": "log",
                      "tickvals": RATIOS, "ticktext": [f"{r:g}x" for r in RATIOS]},
            "height": 380,
        },
    )  # fmt: skip
    table = Table(
        "latency", "Latency of single layers", ["layer", "batch", "sparsity", "speed-up", "verdict"], rows, folded=True
    )
    return Section("latency", title, sentences, [figure], [table])


def _broken(label: str) -> str:
    """A label in two lines where it has settings in brackets."""
    return plain(label).replace("[", "<br>[", 1)


def cost_section(study: Study) -> Section:
    """Time of a training step of each method relative to the plain optimizer's."""
    title, costs = "Cost of a training step", study.summary.costs
    if not costs:
        return Section("cost", title, missing="The cost of a step was not measured.")
    places = {method: place for place, method in enumerate(study.looks)}
    costs = sorted(costs, key=lambda cost: places.get(cost.method, len(places)))
    colours = [study.looks[c.method].colour if c.method in study.looks else "@muted" for c in costs]
    longest = max(cost.ratio for cost in costs)
    figure = Figure(
        "cost", "Time of one step relative to the plain optimizer's, steps interleaved in one process (median of ratios).",
        {
            "": [
                {
                    "type": "bar", "orientation": "h", "x": [c.ratio for c in costs], "y": [_broken(c.method) for c in costs],
                    "text": [f"{c.ratio:.2f}x" for c in costs], "textposition": "outside", "cliponaxis": False,
                    "marker": {"color": colours}, "hovertemplate": "%{y}: %{x:.3f}x<extra></extra>", "showlegend": False,
                }
            ]
        },
        {
            "xaxis": {"title": {"text": "time / plain step"},
                      "range": [0, 1.15 * max(longest, 1)], "ticksuffix": "x"},
            "yaxis": {"autorange": "reversed", "type": "category", "automargin": True, "ticksuffix": "  "},
            "shapes": [
                {"type": "line", "layer": "below", "x0": 1, "x1": 1, "yref": "paper", "y0": 0, "y1": 1,
                 "line": {"color": "@ink", "width": 1.5, "dash": "4px,3px"}}
            ],
            "height": 110 + 38 * len(costs), "bargap": 0.35, "margin": {"r": 36},
        },
    )  # fmt: skip
    rows = [
        [
            Cell(cost.method),
            Cell(f"{cost.ratio:.3f}x", round(cost.ratio, 5)),
            Cell(f"{cost.extra_state_ratio:.2f}x", round(cost.extra_state_ratio, 5)),
        ]
        for cost in costs
    ]
    table = Table("cost", "Cost by method", ["method", "time of a step", "optimizer state"], rows)
    return Section("cost", title, [], [figure], [table])

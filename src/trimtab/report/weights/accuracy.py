"""Accuracy against sparsity: the main figure, its tables, and the controls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import (
    HALVES,
    STATES,
    Cell,
    Figure,
    Section,
    Table,
    escaped,
    halvings,
    plain,
    seeds_sentence,
    sparsity_axis,
    state_of,
)
from trimtab.report.traces import band, dots, line
from trimtab.report.weights.study import Study
from trimtab.studies.statistics import (
    Entry,
    Estimate,
    against,
    sparsity_label,
)

CONTROLS = {
    ("magnitude", "global"): ("global magnitude", "solid", "circle"),
    ("magnitude", "layer"): ("per layer", "dash", "square"),
    ("random", "global"): ("random", "dot", "x"),
}


def _line(study: Study, entries: Sequence[Entry], name: str, look: Look) -> dict[str, Any]:
    data = [[sparsity_label(entry.sparsity), study.half(entry)] for entry in entries]
    x, y = [halvings(entry.sparsity) for entry in entries], [entry.mean for entry in entries]
    hover = f"%{{fullData.name}}, %{{customdata[0]}}<br><b>{study.plotted()}</b> %{{customdata[1]}}"
    return line(name, look, x, y, hover, points=True, width=2.5, size=8, group=True, customdata=data)


def _band(entries: Sequence[Entry], name: str, look: Look, opacity: float = 0.13) -> list[dict[str, Any]]:
    """The interval as an area, left out where there is one seed."""
    known = [(halvings(e.sparsity), e.low, e.high) for e in entries if e.low is not None and e.high is not None]
    return [band(name, look.faint(opacity), *zip(*known, strict=True))] if known else []


def _seeds(study: Study, entries: Sequence[Entry], name: str, look: Look) -> dict[str, Any]:
    points = [
        (halvings(e.sparsity), value, sparsity_label(e.sparsity), seed) for e in entries for seed, value in e.values
    ]
    trace = dots(
        name, replace(look, colour=look.faint(0.55)), [x for x, *_ in points], [y for _, y, *_ in points],
        escaped(name) + f", %{{customdata[0]}}, seed %{{customdata[1]}}: {study.plotted()}", size=6, group=True,
        showlegend=False,
        customdata=[[label, seed] for *_, label, seed in points],
    )  # fmt: skip
    return trace | {"name": f"{plain(name)}, seeds"}


def _level(
    study: Study, name: str, value: float, ends: Sequence[float], look: Look, *, left: bool = False
) -> dict[str, Any]:
    """A line across the figure with its name on it, at the right end or the left."""
    return line(
        name, look, ends, [value, value], f"{escaped(name)}: {study.plotted()}", width=1.5, showlegend=False, mode="lines+text",
        text=[plain(name), ""] if left else ["", plain(name)], textposition="top right" if left else "top left",
        textfont={"size": 11, "color": "@muted"},
    )  # fmt: skip


def _value_axis(study: Study, entries: Sequence[Entry]) -> dict[str, Any]:
    values = [value for entry in entries for _, value in entry.values]
    low, high = min([study.summary.chance, *values]), max([study.summary.chance, *values])
    margin = 0.04 * (high - low) + 0.01
    if (
        study.metric.lower
    ):  # a network pruned to death is worse than guessing without end: the axis ends a little above chance
        high = min(high, study.summary.chance + (study.summary.chance - low))
        ends = [low - margin, high + margin]
    else:
        ends = [max(low - margin, -0.02), min(high + margin, 1.02)]
    return {
        "title": {"text": study.quality + (" (lower is better)" if study.metric.lower else "")},
        "tickformat": study.ticks,
        "range": ends,
        "zeroline": False,
    }


def _main_figure(study: Study) -> Figure:
    axis = sparsity_axis([entry.sparsity for entry in study.main])
    states: dict[str, list[dict[str, Any]]] = {}
    for recalibrated in study.states:
        entries = [entry for entry in study.main if entry.recalibrated == recalibrated]
        bands: list[dict[str, Any]] = []
        dots: list[dict[str, Any]] = []
        lines: list[dict[str, Any]] = []
        for method, look in study.looks.items():
            own = [entry for entry in entries if entry.method == method]
            if own:
                bands += _band(own, method, look, 0.13 if len(study.looks) <= 5 else 0.06)
                dots += [_seeds(study, own, method, look)] if own[0].n > 1 else []
                lines.append(_line(study, own, method, look))
        levels = []
        dense = next((e for e in entries if e.method == study.baseline and e.sparsity == 0), None)
        if dense is not None:
            faint = Look(study.looks[study.baseline].faint(0.6), "2px,3px")
            levels.append(_level(study, f"{study.baseline}, dense", dense.mean, axis["range"], faint))
        if study.summary.chance > 0:
            levels.append(
                _level(
                    study, "chance", study.summary.chance, axis["range"], Look("@muted", "8px,3px,2px,3px"), left=True
                )
            )
        states[state_of(recalibrated=recalibrated)] = bands + dots + levels + lines
    return Figure(
        "accuracy",
        f"{study.quality} against sparsity, one line per method, faint points for single seeds. "
        + seeds_sentence([entry.n for entry in study.main])
        + " Each step to the right leaves a smaller share of the weights: the axis is the logarithm of the density.",
        states,
        {"xaxis": axis, "yaxis": _value_axis(study, study.main), "height": 420},
        switch="state",
    )


def _grid(
    study: Study,
    name: str,
    caption: str,
    cells: dict[tuple[str, float], Estimate],
    *,
    recalibrated: bool,
    certain: bool = False,
) -> Table:
    """Methods by sparsities; the best of a column is marked, or with `certain` each interval that excludes zero."""
    metric = study.metric
    sparsities = sorted({sparsity for _, sparsity in cells})
    best = {s: metric.best(cell.mean for (_, other), cell in cells.items() if other == s) for s in sparsities}
    rows = []
    for method in study.looks:
        own = [cells.get((method, sparsity)) for sparsity in sparsities]
        if any(own):
            rows.append(
                [Cell(method, look=study.looks[method])]
                + [
                    Cell("", None)
                    if cell is None
                    else Cell(
                        study.spread(cell, signed=name != "absolute"),
                        round(metric.scale * cell.mean, 4),
                        best=cell.excludes_zero if certain else cell.mean == best[sparsity],
                        mark=("gain" if metric.gain(cell.mean) > 0 else "harm")
                        if certain and cell.excludes_zero
                        else "",
                    )
                    for cell, sparsity in zip(own, sparsities, strict=True)
                ]
            )
    state = state_of(recalibrated=recalibrated)
    head = ["method", *map(sparsity_label, sparsities)]
    return Table(f"{name}-{state}", f"{caption} ({STATES[state]})", head, rows, state=state)


def _tables(study: Study) -> list[Table]:
    tables = []
    for recalibrated in study.states:
        entries = [entry for entry in study.main if entry.recalibrated == recalibrated]
        absolute: dict[tuple[str, float], Estimate] = {(e.method, e.sparsity): e for e in entries}
        tables.append(
            _grid(
                study,
                "absolute",
                f"{study.metric.headed}; bold: {study.metric.better} mean of the column",
                absolute,
                recalibrated=recalibrated,
            )
        )
        dense = {(e.method, e.sparsity): e.to_dense for e in entries if e.to_dense is not None and e.sparsity > 0}
        if dense:
            caption = f"Difference to the same method's dense network, in {study.metric.unit}"
            tables.append(_grid(study, "dense", caption, dense, recalibrated=recalibrated))
        base = {(e.method, e.sparsity): difference for e, difference in against(entries, study.baseline)}
        if base:
            caption = (
                f"Difference to {study.baseline}, paired over seeds, in {study.metric.unit}; bold with an arrow (gain or "
                "harm): the interval excludes zero"
            )
            tables.append(_grid(study, "baseline", caption, base, recalibrated=recalibrated, certain=True))
    return tables


def accuracy_section(study: Study) -> Section:
    """The main figure and the tables beside it."""
    counts = [entry.n for entry in study.main]
    sentences = [seeds_sentence(counts, HALVES)]
    if len(study.states) == 1:
        only = STATES[state_of(recalibrated=study.states[0])]
        sentences.append(f"The networks were measured in one state only ({only}), so there is nothing to switch.")
    if max(counts) > 1:
        sentences.append("Intervals are per comparison, not adjusted for how many there are.")
    return Section(
        "accuracy",
        f"{study.quality} against sparsity",
        sentences,
        [_main_figure(study)],
        _tables(study),
        switch="state",
    )


def controls_section(study: Study) -> Section:
    """Global magnitude against a random mask and per-layer magnitude, a small figure for each method that has controls."""
    pairs = list(dict.fromkeys((entry.score, entry.scope) for entry in study.entries))
    title = "Controls: does it matter which weights go?"
    if len(pairs) < 2:
        only = " ".join(pairs[0])
        return Section("controls", title, missing=f"No controls were measured: every network was pruned by {only}.")
    axis = {**sparsity_axis([entry.sparsity for entry in study.entries], "sparsity", gap=0.15), "tickangle": 0}
    values = {key: value for key, value in _value_axis(study, study.entries).items() if key != "title"}
    figures = []
    for place, (method, look) in enumerate(study.looks.items()):
        if len({(entry.score, entry.scope) for entry in study.entries if entry.method == method}) < 2:
            continue
        states = {}
        for recalibrated in study.states:
            traces = []
            for pair in pairs:
                own = [
                    entry
                    for entry in study.entries
                    if (entry.method, entry.recalibrated, entry.score, entry.scope) == (method, recalibrated, *pair)
                ]
                label, dash, marker = CONTROLS.get(pair, (" ".join(pair), "longdash", "diamond"))
                if own:
                    traces += [*_band(own, label, look), _line(study, own, label, Look(look.colour, dash, marker))]
            states[state_of(recalibrated=recalibrated)] = traces
        if any(states.values()):
            figures.append(
                Figure(
                    f"controls-{place}", f"{method}: {study.quality} by way of pruning.", states,
                    {"xaxis": axis, "yaxis": values, "height": 290, "margin": {"l": 44}, "legend": {"font": {"size": 11}}},
                    switch="state", small=True, title=method,
                )
            )  # fmt: skip
    sentences = [
        "A random mask of the same size shows what magnitude is worth; the same sparsity in every layer shows what the "
        "global threshold is worth; the dense network stands at the left end. "
        + seeds_sentence([e.n for e in study.entries])
    ]
    return Section("controls", title, sentences, figures, switch="state")

"""Pruned once against pruned and trained on: the way that costs nothing beside the one that people take today."""

from __future__ import annotations

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
    seeds_sentence,
    sparsity_axis,
    state_of,
)
from trimtab.report.traces import line
from trimtab.report.weights.study import Study
from trimtab.studies.statistics import Entry, against, sparsity_label


def _trace(study: Study, own: list[Entry], name: str, look: Look) -> dict[str, Any]:
    hover = escaped(name) + f", %{{customdata[0]}}<br><b>{study.plotted()}</b> %{{customdata[1]}}"
    data = [[sparsity_label(e.sparsity), study.half(e)] for e in own]
    return line(
        name, look, [halvings(e.sparsity) for e in own], [e.mean for e in own], hover, points=True, customdata=data
    )


def fine_tuned_sections(study: Study) -> list[Section]:
    """A figure and a table of the networks that were trained on after pruning; no section where none was."""
    if not study.tuned:
        return []
    once = [entry for entry in study.main if entry.recalibrated == study.states[-1]]
    state = STATES[state_of(recalibrated=study.states[-1])]
    lengths = sorted({entry.finetuned for entry in study.tuned})
    traces: list[dict[str, Any]] = []
    rows: list[list[Cell]] = []
    sparsities = sorted({entry.sparsity for entry in study.tuned})
    for epochs in lengths:
        tuned = [entry for entry in study.tuned if entry.finetuned == epochs]
        best = {
            s: study.metric.best(entry.mean for entry in tuned if entry.sparsity == s)
            for s in {e.sparsity for e in tuned}
        }
        differences = {
            (entry.method, entry.sparsity): difference for entry, difference in against(tuned, study.baseline)
        }
        for method, look in study.looks.items():
            own = {entry.sparsity: entry for entry in tuned if entry.method == method}
            if not own:
                continue
            traces.append(_trace(study, list(own.values()), f"{method}, fine-tuned {epochs}", look))
            cells = [Cell(method), Cell(str(epochs), epochs)]
            for sparsity in sparsities:
                entry = own.get(sparsity)
                if entry is None:
                    cells.append(Cell("", None))
                    continue
                difference = differences.get((method, sparsity))
                note = (
                    ""
                    if difference is None
                    else f"{study.spread(difference, signed=True)} {study.metric.unit} to {study.baseline}"
                )
                value = round(study.metric.scale * entry.mean, 4)
                cells.append(Cell(study.spread(entry), value, best=entry.mean == best[sparsity], note=note))
            rows.append(cells)
    for method, look in study.looks.items():
        own_once = [entry for entry in once if entry.method == method]
        if own_once and any(entry.method == method for entry in study.tuned):
            traces.append(_trace(study, own_once, f"{method}, {state}", Look(look.faint(0.55), "2px,3px", look.marker)))
    figure = Figure(
        "fine-tuned",
        f"{study.quality} against sparsity: full lines fine-tuned after pruning, dotted ones {state} without training on.",
        {"": traces},
        {
            "xaxis": sparsity_axis(sparsities),
            "yaxis": {"title": {"text": study.quality}, "tickformat": study.ticks, "zeroline": False},
            "height": 420,
        },
    )
    head = ["method", "epochs", *map(sparsity_label, sparsities)]
    caption = f"{study.metric.headed} after fine-tuning; bold: {study.metric.better} mean of the column"
    sentences = [
        "Each pruned network was trained on by the base optimizer without levers, the removed weights kept at zero; the dense "
        "network was trained on for as long, so that the further epochs are not taken for an effect of pruning. "
        + seeds_sentence([entry.n for entry in study.tuned], HALVES)
    ]
    return [
        Section(
            "fine-tuned", "Pruned, then fine-tuned", sentences, [figure], [Table("fine-tuned", caption, head, rows)]
        )
    ]

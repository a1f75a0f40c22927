"""Quality against bytes: what a file of so many bytes keeps, for every method and form."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from trimtab.report.parts import HALVES, Cell, Figure, Section, Table, seeds_sentence
from trimtab.report.traces import dots, line
from trimtab.report.weights.study import Study
from trimtab.studies.file_forms import Place, files_headline, frontier, places
from trimtab.studies.sizes import bytes_text

TITLE = "Quality against bytes"


def _trace(study: Study, name: str, found: list[Place], dash: str | None) -> dict[str, Any]:
    """A line through places by size, or marks where the dash is None."""
    hover = f"{name}<br>%{{customdata[0]}}, %{{customdata[1]}}<br><b>{study.plotted()}</b> %{{customdata[2]}}"
    data = [[one.words, bytes_text(one.size), study.half(one.quality)] for one in found]
    look = study.looks[found[0].method]
    x, y = [one.size for one in found], [one.quality.mean for one in found]
    if dash is None:
        return dots(
            name, replace(look, colour=look.faint(0.45)), x, y, hover, size=6, showlegend=False, customdata=data
        )
    return line(name, replace(look, dash=dash), x, y, hover, points=True, width=2.2, customdata=data)


def _figure(study: Study, found: list[Place]) -> Figure:
    traces: list[dict[str, Any]] = []
    for method in study.looks:
        own = [one for one in found if one.method == method]
        coded = [one for one in own if one.form == "compact"]
        best = frontier(coded, study.metric)
        if behind := [one for one in coded if one not in best]:
            traces.append(_trace(study, f"{method}, other bits and sparsities", behind, None))
        if best:
            traces.append(_trace(study, f"{method}, quantised and entropy-coded", best, "solid"))
        if plain := [one for one in own if one.form != "compact"]:
            traces.append(
                _trace(study, f"{method}, float32 and bfloat16", sorted(plain, key=lambda one: one.size), "dot")
            )
    return Figure(
        "files",
        f"{study.quality} of the network in a file against the file's bytes (logarithmic). Full lines: the best quantised and "
        "entropy-coded files of each method, faint points: the others; dotted: dense in float32 and bfloat16, and pruned with "
        "zeros left out.",
        {"": traces},
        {
            "xaxis": {"title": {"text": "bytes of the file"}, "type": "log", "zeroline": False},
            "yaxis": {
                "title": {"text": study.quality + (" (lower is better)" if study.metric.lower else "")},
                "tickformat": study.ticks, "zeroline": False,
            },
            "height": 420,
        },
    )  # fmt: skip


def files_section(study: Study) -> Section | None:
    """The rate-distortion figure and its table; None where no file was measured."""
    found = [one for method in study.looks for one in places(study.summary) if one.method == method]
    if not found:
        return None
    metric = study.metric
    said = files_headline(found, study.baseline, metric)
    sentences = [f"{said[:1].upper()}{said[1:]}."] if said else []
    sentences.append(
        "Zeros and bits are the same for all weights of a file; trimtab compress chooses them for each weight, which can "
        "take fewer bytes. " + seeds_sentence([one.quality.n for one in found], HALVES)
    )
    best = {one for method in study.looks for one in frontier([p for p in found if p.method == method], metric)}
    rows = [
        [
            Cell(one.method, look=study.looks[one.method]), Cell(one.words),
            Cell(bytes_text(one.size), round(one.size)), Cell(str(one.quality.n), one.quality.n),
            Cell(study.spread(one.quality), round(metric.scale * one.quality.mean, 4), best=one in best),
        ]
        for one in sorted(found, key=lambda one: (list(study.looks).index(one.method), one.size))
    ]  # fmt: skip
    caption = f"Files and {metric.heading}; bold: no smaller file of the method keeps as much"
    table = Table("files", caption, ["method", "form", "file", "seeds", metric.heading], rows, folded=True)
    return Section("files", TITLE, sentences, [_figure(study, found)], [table])

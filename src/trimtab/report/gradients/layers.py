"""The variance of each layer's gradient over training, a line per method, and against the baseline in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.numerals import intervals, times
from trimtab.report.palette import Look
from trimtab.report.parts import Cell, Figure, Section, Table, Tile, Verdict
from trimtab.report.traces import band, from_zero, line, powers, shortened
from trimtab.studies.gradients.against import FEWEST, Ratio, ends, spread_ratio, variance_ratio
from trimtab.studies.summary import Dynamics

SHOWN = 12
"""Layers that have a figure of their own: so many, evenly over the depth [ours]."""
Groups = Mapping[str, Sequence[Dynamics]]


def _points(runs: Sequence[Dynamics], layer: str) -> list[tuple[int, list[float]]]:
    """Per step that the runs share: log10 of the variance in each."""
    curves = [
        {step: value for step, value in zip(run.steps, found.log10_std, strict=False) if value is not None}
        for run in runs
        for found in run.layers
        if found.name == layer and found.log10_std
    ]
    if not curves:
        return []
    return [
        (step, [2 * curve[step] for curve in curves]) for step in curves[0] if all(step in curve for curve in curves)
    ]


def _traces(name: str, look: Look, points: Sequence[tuple[int, list[float]]]) -> list[dict[str, Any]]:
    around = [(step, found) for step, values in points if (found := ends(values)) is not None]
    traces = []
    if around:
        x = [step for step, _ in around]
        traces.append(
            band(name, look.faint(0.15), x, [10**low for _, (low, _) in around], [10**high for _, (_, high) in around])
        )
    means = [10 ** (math.fsum(values) / len(values)) for _, values in points]
    hover = "%{fullData.name}, step %{x}: %{y:.3g}"
    return [*traces, line(name, look, [step for step, _ in points], shortened(means), hover, group=True)]


def _evenly(names: Sequence[str]) -> list[str]:
    if len(names) <= SHOWN:
        return list(names)
    return [names[round(place * (len(names) - 1) / (SHOWN - 1))] for place in range(SHOWN)]


def layers_section(groups: Groups, looks: Mapping[str, Look]) -> Section | None:
    """A small figure for each of up to twelve layers; None where no run kept its layers' curves."""
    names = list(dict.fromkeys(layer.name for runs in groups.values() for run in runs for layer in run.layers))
    shown, figures = _evenly(names), []
    steps = [{"x": run.steps} for runs in groups.values() for run in runs]
    for place, name in enumerate(shown):
        traces = [
            trace
            for method, runs in groups.items()
            if (points := _points(runs, name))
            for trace in _traces(method, looks[method], points)
        ]
        if traces:
            title = name.removesuffix(".weight")
            figures.append(
                Figure(
                    f"dynamics-variance-{place}", f"Variance of the gradient of {name} over training.", {"": traces},
                    {"xaxis": from_zero(steps), "yaxis": powers(traces), "height": 250, "margin": {"l": 52}},
                    small=True, title=title,
                )
            )  # fmt: skip
    if not figures:
        return None
    counts = {sum(bool(run.layers and run.layers[0].log10_std) for run in runs) for runs in groups.values()}
    sentences = [
        "Variance of the entries of a layer's gradient, before penalty and transforms; lines are geometric means."
    ]
    if counts == {1}:
        sentences.append("One seed of each method kept its curves: no interval.")
    else:
        kind = (
            "95 % t intervals"
            if min(counts) >= FEWEST
            else "the least and greatest seed where there are fewer than three"
        )
        sentences.append(f"Bands over seeds: {kind}.")
    if len(names) > len(shown):
        sentences.append(f"{len(shown)} of {len(names)} layers, evenly over the depth; the tables hold all.")
    return Section("dynamics-variance", "Variance layer by layer", sentences, figures)


def _cells(found: Sequence[Ratio | None]) -> list[Cell]:
    texts = intervals(
        [None if one is None else one.value for one in found],
        [(None, None) if one is None else (one.low, one.high) for one in found],
        sign="\u00d7",
    )
    return [
        Cell("", None) if one is None else Cell(text, float(f"{one.value:.5g}"), best=one.certain)
        for text, one in zip(texts, found, strict=True)
    ]


def against_section(groups: Groups, baseline: str) -> Section | None:
    """Each layer's variance over the baseline's, in the last tenth of the steps; None with one method."""
    others = [name for name in groups if name != baseline]
    base = groups[baseline]
    if not others:
        return None
    names = list(dict.fromkeys(layer.name for run in base for layer in run.layers))
    columns = [
        _cells([variance_ratio(groups[name], base), *(variance_ratio(groups[name], base, layer) for layer in names)])
        for name in others
    ]
    heads = ["all together", *(layer.removesuffix(".weight") for layer in names)]
    rows = [[Cell(head), *(own[place] for own in columns)] for place, head in enumerate(heads)]
    seeds = max(len(runs) for runs in groups.values())
    ends_are = "95 % t interval over seeds" if seeds >= FEWEST else "least and greatest seed"
    note = f" ({ends_are}; bold: excludes 1)" if seeds >= FEWEST else f" ({ends_are})" if seeds > 1 else ""
    return Section(
        "dynamics-against", f"Against {baseline}",
        [f"Variance of the gradient in the last tenth of the tracked steps over that of {baseline}, paired over seeds: below 1 "
         "the gradients end quieter."],
        tables=[Table("against", f"Variance over that of {baseline}{note}", ["layer", *others], rows, folded=len(rows) > 24)],
    )  # fmt: skip


def dynamics_verdict(groups: Groups, looks: Mapping[str, Look], baseline: str, sentence: str) -> Verdict:
    """What the gradients of the compared runs come to.

    Args:
        groups: runs by label.
        looks: of the labels.
        baseline: what the others are compared with.
        sentence: on all runs together, for a page of one label.
    """
    base, parts = groups[baseline], []
    tiles = [Tile(baseline, _layers_differ(base), "baseline" if len(groups) > 1 else "", look=looks[baseline])]
    for name, runs in groups.items():
        found = variance_ratio(runs, base) if name != baseline else None
        if found is None:
            continue
        told = found.certain or found.seeds < FEWEST
        words = f"{times(found.value, sign='')} times the variance" if told else "not told apart"
        between = "" if found.low is None or found.high is None else f"{found.low:.2g} to {found.high:.2g} times; "
        tiles.append(Tile(name, words, between + _layers_differ(runs), look=looks[name]))
        if told:
            parts.append((abs(math.log(found.value)), _clause(name, words, baseline, spread_ratio(runs, base))))
    parts.sort(reverse=True)
    lead = "; ".join(text for _, text in parts[:2])
    if not lead and len(groups) > 1:
        lead = f"At the end of training no method's gradient variance is told apart from {baseline}'s"
    bad = sum(run.facts.non_finite for runs in groups.values() for run in runs)
    finite = f" {bad:,} gradient entries were NaN or infinite." if bad else " Every gradient was finite."
    return Verdict(f"{lead}.{finite}" if lead else sentence, tiles[:6] if len(groups) > 1 else [])


def _clause(name: str, words: str, baseline: str, spread: Ratio | None) -> str:
    text = f"{name}'s gradients end with {words} of {baseline}'s"
    if spread is None or 0.8 <= spread.value <= 1.25:
        return text
    return f"{text}, its layers differ {times(spread.value, sign='')} times as much"


def _layers_differ(runs: Sequence[Dynamics]) -> str:
    spreads = sorted(run.facts.heterogeneity for run in runs if run.facts.heterogeneity is not None)
    return f"layers differ {times(spreads[len(spreads) // 2])}" if spreads else "layers not compared"

"""Gradients over training: the global standard deviation, layers by steps, what the transforms did, runs beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from trimtab.report.gradients.alarms import alarm_marks, alarms_section
from trimtab.report.gradients.layers import against_section, layers_section
from trimtab.report.heat import heat_section
from trimtab.report.palette import Look
from trimtab.report.parts import MINUS, Cell, Figure, Section, Table, number, seeds_sentence
from trimtab.report.traces import SMALL, band, from_zero, line, powers, shortened
from trimtab.studies.gradients.against import FEWEST, ends
from trimtab.studies.statistics import baseline_of, estimate
from trimtab.studies.summary import Dynamics

TITLE = "Gradients over training"
SIGNALS = {
    "norm": "norm before clipping",
    "factor": "clipping factor",
    "clipped": "share of units clipped",
    "update_ratio": "update / weight, of each step",
    "update_ratio_max": "largest update / weight of a tensor",
    "update_ratio_min": "smallest update / weight of a tensor",
    "nlm_cosine": "cosine of \u2212gradient and weights",
    "nlm_cosine_max": "largest cosine of \u2212gradient and weight of a tensor",
    "noise_scale": "gradient noise scale, examples",
    "noise_signal": "|G|\u00b2 of the noise scale",
    "noise_variance": "tr \u03a3 of the noise scale",
    "softmax_collapse": "share of collapsed examples",
    "activation_max": "largest activation",
    "activation_outliers": "share of outlier channels, largest of a layer",
    "activation_silent": "share of silent channels, largest of a layer",
    "attention_logit": "greatest attention logit",
    "attention_query_norm": "greatest norm of a query",
    "attention_key_norm": "greatest norm of a key",
    "loss_z": "loss, deviations above usual",
    "gradient_z": "gradient norm, deviations above usual",
    "update_z": "update norm, deviations above usual",
}
Points = list[tuple[int, list[float]]]


def by_method(found: Sequence[Dynamics]) -> dict[str, list[Dynamics]]:
    """The runs of each label, in order of first appearance."""
    groups: dict[str, list[Dynamics]] = {}
    for run in found:
        groups.setdefault(run.method, []).append(run)
    return groups


def _over_seeds(runs: Sequence[Dynamics], values: Callable[[Dynamics], Sequence[float | None]]) -> Points:
    """Per step that all seeds share: the seeds' values; steps where a seed has none are left out."""
    tables = [dict(zip(run.steps, values(run), strict=False)) for run in runs]
    shared = [step for step in runs[0].steps if all(table.get(step) is not None for table in tables)]
    return [(step, [value for table in tables if (value := table[step]) is not None]) for step in shared]


def _count_axis(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """An axis from zero with whole numbers only."""
    most = max(value for trace in traces for value in trace["y"])
    few = {"dtick": 1, "range": [0, most + 0.5]} if most <= 5 else {}
    return {"rangemode": "tozero", "tickformat": ",d", **few}


def _logarithms(points: Points) -> Points:
    return [(step, [math.log10(value) for value in values]) for step, values in points if min(values) > 0]


def _std_traces(method: str, runs: Sequence[Dynamics], look: Look) -> list[dict[str, Any]]:
    points = _logarithms(_over_seeds(runs, lambda run: run.std))
    if not points:
        return []
    steps = [step for step, _ in points]
    traces: list[dict[str, Any]] = []
    around = [(step, 10 ** found[0], 10 ** found[1]) for step, values in points if (found := ends(values)) is not None]
    if around:
        traces.append(band(method, look.faint(0.15), *zip(*around, strict=True)))
    return [*traces, _line(method, look, steps, [10 ** _mean(values) for _, values in points])]


def _line(
    method: str, look: Look, steps: Sequence[int], values: Sequence[float], *, steady: bool = False
) -> dict[str, Any]:
    shape, hover = "hv" if steady else "linear", "%{fullData.name}, step %{x}: %{y:.3g}"
    return line(method, look, steps, shortened(values), hover, shape=shape, group=True)


def _std_figure(groups: Mapping[str, list[Dynamics]], looks: Mapping[str, Look]) -> Figure:
    traces = [trace for method, runs in groups.items() for trace in _std_traces(method, runs, looks[method])]
    traces += [trace for method, runs in groups.items() for trace in alarm_marks(method, runs, looks[method])]
    counts = [len(runs) for runs in groups.values()]
    return Figure(
        "dynamics-std",
        "Standard deviation of all tracked gradients together, as they come: before penalty and transforms. "
        + ("Lines are geometric means over seeds. " if max(counts) > 1 else "")
        + _bands(counts)
        + (" Crosses: alarms of a guard." if any(run.alarms for runs in groups.values() for run in runs) else ""),
        {"": traces},
        {
            "xaxis": from_zero(traces),
            "yaxis": {"title": {"text": "standard deviation"}, **powers(traces)},
            "height": 380,
        },
    )


def _bands(counts: Sequence[int]) -> str:
    """What the bands are."""
    if max(counts) == 2:
        return "Bands: the least and greatest of two seeds."
    text = seeds_sentence(counts).replace("of the mean", "of the mean logarithm")
    return text + " Of two seeds they are the least and greatest." if 1 < min(counts) < FEWEST else text


def _facts_table(found: Sequence[Dynamics]) -> Table:
    updates = any(run.facts.update_ratio is not None for run in found)
    scaled = any(run.facts.alpha is not None for run in found)
    rows = []
    for run in found:
        facts = run.facts
        cells = [
            Cell(run.method), Cell(str(run.seed), run.seed), Cell(f"{run.tracked:,}", run.tracked),
            number(facts.heterogeneity, unit="x"), number(facts.fall, unit="x"),
        ]  # fmt: skip
        cells += [number(facts.update_ratio)] if updates else []
        if scaled:
            alpha = facts.alpha
            cells.append(Cell("", None) if alpha is None else Cell(f"{alpha[0]:.3g} to {alpha[1]:.3g}", alpha[0]))
        cells += [Cell(str(facts.dead), facts.dead), Cell(f"{facts.non_finite:,}", facts.non_finite)]
        rows.append(cells)
    head = ["method", "seed", "steps", "layers differ", "global fall"]
    head += ["update / weight"] if updates else []
    head += ["alpha"] if scaled else []
    head += ["dead layers", "non-finite"]
    return Table("dynamics", "The dynamics in numbers", head, rows, folded=len(rows) > 12)


def _trend_table(groups: Mapping[str, Sequence[Dynamics]]) -> Table | None:
    """Whether the gradients fall or rise, with an interval; None where no label has two seeds to give one."""
    rows = []
    for method, runs in groups.items():
        trends = [run.facts.trend for run in runs if run.facts.trend is not None]
        if len(trends) < 2:
            continue
        found = estimate(trends)
        low, high = (
            (max(-1.0, found.low or -1.0), min(1.0, found.high or 1.0)) if found.half else (found.mean, found.mean)
        )
        mean, *ends = (f"{value + 0.0:.2f}".replace("-", MINUS) for value in (found.mean, low, high))
        told = low > 0 or high < 0
        rows.append([Cell(method), Cell(f"{mean} ({ends[0]} to {ends[1]})", round(found.mean, 5), best=told),
                     Cell(str(found.n), found.n)])  # fmt: skip
    if not rows:
        return None
    caption = "Rank correlation of the standard deviation with the step (95 % t interval over seeds; bold: excludes 0)"
    return Table("trend", caption, ["method", "rank correlation", "seeds"], rows)


EXPLAINED = (
    "Steps: how many were tracked. Layers differ: largest over smallest standard deviation of a layer, median over steps. "
    "Global fall: standard deviation in the first tenth of the tracked steps over that in the last. A layer "
    "is dead in a step when its gradient is zero everywhere; counted are layers dead in half or more of the steps. "
    "Non-finite: entries that are NaN or infinite."
)


def _small(
    name: str,
    title: str,
    caption: str,
    groups: Mapping[str, list[Dynamics]],
    looks: Mapping[str, Look],
    values: Callable[[Dynamics], Sequence[float | None]],
    *,
    join: Callable[[Sequence[float]], float],
    log: bool = False,
    counts: bool = False,
) -> Figure | None:
    traces = []
    for method, runs in groups.items():
        with_values = [run for run in runs if values(run)]
        points = _over_seeds(with_values, values) if with_values else []
        points = _logarithms(points) if log else points
        if points:
            joined = [10 ** join(own) if log else join(own) for _, own in points]
            traces.append(_line(method, looks[method], [step for step, _ in points], joined, steady=counts))
    if not traces:
        return None
    axis = powers(traces) if log else _count_axis(traces) if counts else {"rangemode": "tozero"}
    return Figure(
        name, caption, {"": traces},
        {"xaxis": from_zero(traces), "yaxis": axis, "height": 270 + 18 * min(len(groups), 12), "margin": {"l": 48},
         "legend": SMALL, "showlegend": len(groups) > 1},
        small=True, title=title,
    )  # fmt: skip


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _signal_figures(groups: Mapping[str, list[Dynamics]], looks: Mapping[str, Look]) -> list[Figure | None]:
    names = list(dict.fromkeys(name for runs in groups.values() for run in runs for name in run.signals))
    names = sorted((name for name in names if not name.endswith("sigma")), key=lambda name: not name.endswith("alpha"))
    return [
        _small(
            f"dynamics-signal-{place}", SIGNALS.get(name, name),
            f"{SIGNALS.get(name, name)}, as levers and meters report it; mean over seeds.", groups, looks,
            lambda run, name=name: run.signals.get(name, []), join=_mean,  # type: ignore[misc]
        )
        for place, name in enumerate(names)
    ]  # fmt: skip


def _signals_section(groups: Mapping[str, list[Dynamics]], looks: Mapping[str, Look]) -> Section | None:
    runs = [run for own in groups.values() for run in own]
    figures = [
        _small(
            "dynamics-update", "update / weight", "Norm of a step's weight change over the norm of the weights, all layers.",
            groups, looks, lambda run: run.update_ratio, join=_mean, log=True,
        ),
        *_signal_figures(groups, looks),
    ]  # fmt: skip
    sentences = []
    if any(any(run.dead) for run in runs):
        figures.append(
            _small("dynamics-dead", "dead layers", "Layers whose gradient is zero everywhere; most over seeds.", groups, looks,
                   lambda run: run.dead, join=max, counts=True)
        )  # fmt: skip
    else:
        sentences.append("No layer had a gradient of zero everywhere in any tracked step.")
    if any(any(run.non_finite) for run in runs):
        figures.append(
            _small("dynamics-non-finite", "non-finite entries", "Gradient entries that are NaN or infinite; most over seeds.",
                   groups, looks, lambda run: run.non_finite, join=max, counts=True)
        )  # fmt: skip
    else:
        sentences.append("No gradient entry was NaN or infinite in any tracked step.")
    if not any(run.update_ratio for run in runs):
        sentences.append("Updates were not tracked: --track gradients,weights,updates adds the update-to-weight ratio.")
    drawn = [figure for figure in figures if figure is not None]
    return Section("dynamics-signals", "Transforms, updates and counts", sentences, drawn)


def dynamics_sections(found: Sequence[Dynamics], looks: Mapping[str, Look]) -> list[Section]:
    """All that is shown of tracked runs: one section saying that there are none, or the curves, the layers and the counts.

    Args:
        found: the runs, seeds of one label are drawn together.
        looks: colour, dash and marker of every label.
    """
    if not found:
        return [Section("dynamics", TITLE, missing="No run was tracked; train with --track gradients,weights,updates.")]
    groups = by_method(found)
    trend = _trend_table(groups)
    tables = [_facts_table(found), *([] if trend is None else [trend])]
    curves = Section("dynamics", TITLE, [EXPLAINED], [_std_figure(groups, looks)], tables)
    sections = [
        curves, layers_section(groups, looks), against_section(groups, baseline_of(list(groups))), heat_section(groups),
        alarms_section(found), _signals_section(groups, looks),
    ]  # fmt: skip
    return [section for section in sections if section is not None]

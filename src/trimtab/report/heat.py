"""Layers by steps: a heat map of the gradients' standard deviation for each label, and the layers in numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.palette import SCALE
from trimtab.report.parts import Cell, Figure, Section, Table, number, plain
from trimtab.studies.summary import Dynamics, LayerDynamics

WIDE = 2  # so many maps stand below each other at full width, more become small ones side by side


def _range(runs: Sequence[Dynamics]) -> tuple[float, float]:
    """Colours of all maps: from the 2nd to the 98th percentile, so that a dead layer does not wash out the others."""
    values = sorted(value for run in runs for layer in run.layers for value in layer.log10_std if value is not None)
    if not values:
        return -1.0, 1.0
    low, high = values[int(0.02 * (len(values) - 1))], values[math.ceil(0.98 * (len(values) - 1))]
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _short(name: str, letters: int) -> str:
    text = name.removesuffix(".weight")
    return text if len(text) <= letters else "\N{HORIZONTAL ELLIPSIS}" + text[1 - letters :]


def _edges(steps: Sequence[int]) -> list[float]:
    """Ends of the columns: a column stands for the steps after the last one's, the first from zero on."""
    return [0, *(step + 1 for step in steps)]


def heat_map(
    name: str,
    caption: str,
    title: str,
    *,
    layers: Sequence[str],
    steps: Sequence[int],
    values: Sequence[Sequence[float | None]],
    span: tuple[float, float],
    quantity: str,
    small: bool,
) -> Figure:
    """Layers by steps as colours; the first layer at the top, training from left to right, blank where there is no value.

    Args:
        name, caption, title: of the figure.
        layers: names, in the network's order.
        steps: optimizer steps of the columns.
        values: a row for each layer.
        span: values at the ends of the colour scale.
        quantity: what the values are.
        small: one of several side by side.
    """
    letters, row = (13, 9) if small else (30, 15)
    height = min(max(260, 110 + row * len(layers)), 300 if small else 760)
    every = max(1, math.ceil(len(layers) * 13 / (height - 90)))
    bar = {"thickness": 10, "outlinewidth": 0, "title": {"text": quantity, "side": "top", "font": {"size": 11}}}
    trace: dict[str, Any] = {
        "type": "heatmap", "x": _edges(steps), "y": list(range(len(layers))), "z": [list(row) for row in values],
        "customdata": [[[plain(layer), step] for step in steps] for layer in layers], "zmin": span[0], "zmax": span[1],
        "colorscale": SCALE, "colorbar": bar, "hoverongaps": False,
        "hovertemplate": f"%{{customdata[0]}}, step %{{customdata[1]}}<br>{quantity} <b>%{{z:.2f}}</b><extra></extra>",
    }  # fmt: skip
    ticks = list(range(0, len(layers), every))
    return Figure(
        name, caption, {"": [trace]},
        {
            "xaxis": {"title": {"text": "optimizer step"}, "showgrid": False, "zeroline": False,
                      "range": [0, (steps[-1] if steps else 0) + 1]},
            "yaxis": {"tickvals": ticks, "ticktext": [plain(_short(layers[at], letters)) for at in ticks],
                      "range": [len(layers) - 0.5, -0.5], "showgrid": False, "zeroline": False,
                      "tickfont": {"size": 10 if small else 11}},
            "height": height, "margin": {"l": 40},
        },
        small=small, title=title,
    )  # fmt: skip


def _map(place: int, run: Dynamics, span: tuple[float, float], *, small: bool) -> Figure:
    return heat_map(
        f"dynamics-layers-{place}",
        f"{run.method}, seed {run.seed}: logarithm (base 10) of the standard deviation of each layer's gradient, the first "
        "layer at the top, training from left to right. Blank: zero or not finite.",
        f"{run.method}, seed {run.seed}",
        layers=[layer.name for layer in run.layers],
        steps=run.steps,
        values=[layer.log10_std for layer in run.layers],
        span=span,
        quantity="log\u2081\u2080 std",
        small=small,
    )


def _row(run: Dynamics, layer: LayerDynamics, *, updates: bool) -> list[Cell]:
    both = layer.first is not None and layer.last is not None and layer.last > 0
    fall = layer.first / layer.last if both and layer.first is not None and layer.last is not None else None
    return [
        Cell(layer.name), Cell(run.method), Cell(str(run.seed), run.seed), number(layer.first), number(layer.last),
        number(None if fall is None else float(f"{fall:.5g}"), unit="x"),
        *([number(layer.update_ratio)] if updates else []),
        number(round(100 * layer.dead, 4)), Cell(f"{layer.non_finite:,}", layer.non_finite),
    ]  # fmt: skip


def heat_section(groups: Mapping[str, Sequence[Dynamics]]) -> Section | None:
    """A map of the first seed of each label that kept its curves; None where none did.

    Args:
        groups: runs by label.
    """
    shown = [next((run for run in runs if any(la.log10_std for la in run.layers)), None) for runs in groups.values()]
    runs = [run for run in shown if run is not None]
    if not runs:
        return None
    span, updates = _range(runs), any(layer.update_ratio is not None for run in runs for layer in run.layers)
    head = [
        "layer",
        "method",
        "seed",
        "first",
        "last",
        "fall",
        *(["update / weight"] if updates else []),
        "dead, %",
        "non-finite",
    ]
    rows = [_row(run, layer, updates=updates) for run in runs for layer in run.layers]
    sentences = [
        "Colour: log\u2081\u2080 of the standard deviation of a layer's gradient, one scale for all maps (it ends at the 2nd "
        "and 98th percentile). Layers stand in the network's order, the first at the top; blank is zero or not finite."
    ]
    if any(len(own) > 1 for own in groups.values()):
        sentences.append("Of each method the first seed is shown.")
    return Section(
        "dynamics-layers", "Layer by layer", sentences,
        [_map(place, run, span, small=len(runs) > WIDE) for place, run in enumerate(runs)],
        [Table("layers", "The layers in numbers: standard deviation in the first and last tenth of the tracked steps", head,
               rows, folded=True)],
    )  # fmt: skip

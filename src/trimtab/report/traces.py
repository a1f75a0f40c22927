"""Plotly's dictionaries of scatter figures, each kind written once: lines, points, bands, axes that hold every point."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.report.numerals import tick_text
from trimtab.report.palette import Look
from trimtab.report.parts import plain

Values = Sequence[float | None]
STEPS: dict[str, Any] = {"title": {"text": "optimizer step"}, "zeroline": False}
"""Axis of optimizer steps; `from_zero` gives it its ends."""
SMALL: dict[str, Any] = {"font": {"size": 11}}
"""Legend of a small figure."""


def shortened(values: Values) -> list[float | None]:
    """Five digits are more than a figure shows."""
    return [None if value is None else float(f"{value:.5g}") for value in values]


def _scatter(
    name: str, x: Sequence[Any], y: Values, hover: str | None, *, group: bool, more: dict[str, Any]
) -> dict[str, Any]:
    label = plain(name)
    trace: dict[str, Any] = {"type": "scatter", "x": list(x), "y": list(y), "cliponaxis": False}
    trace |= {"name": label} if name else {}
    trace |= {"legendgroup": label} if group else {}
    trace |= {"hoverinfo": "skip"} if hover is None else {"hovertemplate": f"{hover}<extra></extra>"}
    return trace | more


def line(
    name: str,
    look: Look,
    x: Sequence[Any],
    y: Values,
    hover: str | None,
    *,
    points: bool = False,
    width: float = 2,
    size: int = 7,
    shape: str = "linear",
    group: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """A line; of a single value a point, which a line would not show.

    Args:
        name: in the legend.
        look: colour, dash and marker.
        x, y: the values.
        hover: plotly's template of what is said at a point, None for nothing.
        points: mark the values on the line.
        width, size, shape: of the line, of its points, between them ("hv" for steps).
        group: the legend's entry stands for all traces of this name.
        more: as plotly has it.
    """
    single = sum(value is not None for value in y) < 2
    drawn: dict[str, Any] = {"mode": "lines+markers" if points else "markers" if single else "lines"}
    drawn["line"] = {"color": look.colour, "dash": look.dash, "width": width, "shape": shape}
    drawn |= {"marker": {"color": look.colour, "symbol": look.marker, "size": size}} if points or single else {}
    return _scatter(name, x, y, hover, group=group, more=drawn | more)


def dots(
    name: str,
    look: Look,
    x: Sequence[Any],
    y: Values,
    hover: str | None,
    *,
    size: int = 8,
    group: bool = False,
    **more: Any,
) -> dict[str, Any]:
    """Points; arguments as of `line`."""
    marker = {"color": look.colour, "symbol": look.marker, "size": size}
    return _scatter(name, x, y, hover, group=group, more={"mode": "markers", "marker": marker} | more)


def whiskers(look: Look, above: Sequence[float], below: Sequence[float] | None = None, **more: Any) -> dict[str, Any]:
    """Error bars of these lengths, the same on both sides where `below` is None."""
    lengths = (
        {"array": list(above)}
        if below is None
        else {"symmetric": False, "array": list(above), "arrayminus": list(below)}
    )
    return {"type": "data", "color": look.colour, **lengths, **more}


def band(
    name: str, colour: str, x: Sequence[float], low: Sequence[float], high: Sequence[float], *, group: bool = True
) -> dict[str, Any]:
    """The area between two lines, without an entry in the legend.

    Args:
        name: of the line it belongs to.
        colour: token with an opacity.
        x, low, high: the ends of the interval at each place.
        group: hidden with its line.
    """
    return {
        "type": "scatter", "mode": "lines", "name": f"{plain(name)}, interval", "showlegend": False, "hoverinfo": "skip",
        "x": [*x, *reversed(x)], "y": [*high, *reversed(low)], "fill": "toself", "fillcolor": colour,
        "line": {"width": 0, "color": colour}, **({"legendgroup": plain(name)} if group else {}),
    }  # fmt: skip


def from_zero(traces: Sequence[Mapping[str, Any]], margin: float = 0.02) -> dict[str, Any]:
    """The axis of optimizer steps, from zero to a little beyond the last: no step below zero, no mark cut in half."""
    last = max((step for trace in traces for step in trace["x"]), default=1) or 1
    return {**STEPS, "range": [0 if len(traces) and last > 1 else -margin, (1 + margin) * last]}


def powers(traces: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A logarithmic axis that holds every value, ticks written out: powers of ten, over a decade or less 1, 2 and 5 as well."""
    values = [value for trace in traces for value in trace["y"] if value is not None and value > 0]
    if not values:
        return {"type": "log"}
    low, high = math.log10(min(values)), math.log10(max(values))
    room = 0.05 * (high - low) or 0.1
    ends = [low - room, high + room]
    every = max(1, round((ends[1] - ends[0]) / 6))
    steps = (1, 2, 5) if ends[1] - ends[0] < 1.6 else (1,)
    ticks = [
        step * 10.0**power
        for power in range(math.floor(ends[0]), math.ceil(ends[1]) + 1)
        for step in steps
        if power % every == 0 and ends[0] <= math.log10(step) + power <= ends[1]
    ]
    return {
        "type": "log",
        "range": ends,
        "tickvals": ticks,
        "ticktext": [tick_text(value) for value in ticks],
        "keep": True,
    }


def holding(values: Values, low: float, high: float, margin: float = 0.04) -> list[float]:
    """Ends of an axis that holds `low`, `high` and every value, with a margin of its length where a value lies beyond them.

    Example:
        >>> holding([0.2, 1.5], 0.0, 1.0), holding([0.2], 0.0, 1.0)
        ([0.0, 1.56], [0.0, 1.0])
    """
    known = [value for value in values if value is not None]
    least, most = min([low, *known]), max([high, *known])
    room = margin * (most - least)
    return [round(least - room, 12) if least < low else low, round(most + room, 12) if most > high else high]

"""Plotly's dictionaries drawn by matplotlib: vector figures for a paper, without a browser."""

from __future__ import annotations

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

DASHES: dict[str, Any] = {
    "solid": "-", "dash": (0, (5, 2.5)), "dot": (0, (1, 1.8)), "dashdot": (0, (6, 2, 1.2, 2)), "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 2.5, 1.2, 2.5)),
}  # fmt: skip
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "x": "X", "star": "*", "triangle-down": "v",
    "pentagon": "p", "hexagon": "h", "triangle-left": "<", "cross": "P",
}  # fmt: skip
WIDTH = 6.0
"""Inches: a paper's text width, about [ours]."""


def _plain(text: Any) -> str:
    return html.unescape(re.sub(r"<[^>]*>", " ", str(text))).replace("$", r"\$")


def _colour(text: str) -> Any:
    found = re.fullmatch(r"rgba\((\d+),(\d+),(\d+),([\d.]+)\)", text)
    return (*(int(part) / 255 for part in found.groups()[:3]), float(found[4])) if found else text


def _dash(name: str) -> Any:
    if name in DASHES:
        return DASHES[name]
    parts = [float(part.removesuffix("px")) / 2 for part in name.split(",")]
    return (0, parts)


def _numbers(values: Sequence[Any]) -> list[Any]:
    return [math.nan if value is None else value for value in values]


def _scatter(axes: Any, trace: Mapping[str, Any]) -> None:
    x, y = _numbers(trace["x"]), _numbers(trace["y"])
    if trace.get("fill") == "toself":
        axes.fill(x, y, color=_colour(trace["fillcolor"]), linewidth=0)
        return
    if trace["mode"] == "text":  # numbers in the cells of a map
        for place, text in enumerate(trace["text"]):
            ink = trace["textfont"]["color"][place]
            axes.text(x[place], y[place], _plain(text), ha="center", va="center", fontsize=6, color=ink)
        return
    mode, line, mark = trace["mode"], trace.get("line", {}), trace.get("marker", {})
    colour = _colour(line.get("color") or mark.get("color"))
    symbol = mark.get("symbol", "circle")
    style: dict[str, Any] = {"color": colour, "linestyle": "none", "label": _plain(trace.get("name", "")) or None}
    if trace.get("showlegend") is False:
        style["label"] = None
    if "lines" in mode:
        style |= {"linestyle": _dash(line.get("dash", "solid")), "linewidth": 0.6 * line.get("width", 2)}
        style |= {"drawstyle": {"hv": "steps-post", "hvh": "steps-mid"}.get(line.get("shape", ""), "default")}
    if "markers" in mode:
        style |= {"marker": MARKERS[symbol.removesuffix("-open")], "markersize": 0.55 * mark.get("size", 7)}
        style |= {"markerfacecolor": "none"} if symbol.endswith("-open") else {}
    axes.plot(x, y, clip_on=False, **style)
    for side in ("x", "y"):
        bars = trace.get(f"error_{side}")
        if bars:
            below = bars["array"] if bars.get("symmetric", True) else bars["arrayminus"]
            axes.errorbar(
                x, y, fmt="none", ecolor=colour, elinewidth=0.8, capsize=2, **{f"{side}err": [below, bars["array"]]}
            )
    for at, text in enumerate(trace.get("text", []) if "text" in mode else []):
        right = "left" in trace.get("textposition", "")
        axes.annotate(_plain(text), (x[at], y[at]), ha="right" if right else "left", va="bottom", fontsize=7)


def _map(axes: Any, trace: Mapping[str, Any]) -> None:
    import numpy as np

    values = np.array([_numbers(row) for row in trace["z"]], dtype=float)
    x = np.asarray(trace["x"], dtype=float)
    if trace["type"] == "contour":
        drawn = axes.contourf(x, np.asarray(trace["y"], dtype=float), values, 16, cmap="viridis")
    else:
        if len(x) == values.shape[1]:
            x = np.concatenate([x, x[-1:] + 1]) - 0.5
        drawn = axes.pcolormesh(
            x, np.arange(values.shape[0] + 1) - 0.5, values, cmap="viridis", vmin=trace.get("zmin"), vmax=trace.get("zmax"),
        )  # fmt: skip
    title = trace.get("colorbar", {}).get("title", {}).get("text", "")
    axes.figure.colorbar(drawn, ax=axes).set_label(_plain(title), fontsize=8)


def _bars(axes: Any, trace: Mapping[str, Any]) -> None:
    places = [_plain(name) for name in trace["y"]]
    drawn = axes.barh(places, trace["x"], color=[_colour(colour) for colour in trace["marker"]["color"]])
    axes.bar_label(drawn, labels=trace["text"], padding=2, fontsize=7)
    axes.invert_yaxis()


def _axis(axes: Any, side: str, given: Mapping[str, Any]) -> None:
    log = given.get("type") == "log"
    if log:
        getattr(axes, f"set_{side}scale")("log")
    if "tickvals" in given:
        getattr(axes, f"set_{side}ticks")(given["tickvals"], [_plain(text) for text in given["ticktext"]])
        if log:
            getattr(axes, f"{side}axis").minorticks_off()
    elif str(given.get("tickformat", "")).endswith(("%", "p")):
        from matplotlib.ticker import PercentFormatter

        getattr(axes, f"{side}axis").set_major_formatter(PercentFormatter(1.0))
    if "range" in given:
        ends = [10**end for end in given["range"]] if log else given["range"]
        getattr(axes, f"set_{side}lim")(*ends)
    title = given.get("title", {}).get("text", "")
    if title:
        getattr(axes, f"set_{side}label")(_plain(title))


def drawn(drawing: Mapping[str, Any]) -> Any:
    """A figure of `report.drawings` as a matplotlib figure.

    Raises:
        ImportError: matplotlib is not installed; says which extra brings it.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("figures as files need matplotlib: pip install 'trimtab[figure-files]'") from error
    layout = drawing["layout"]
    figure = Figure(figsize=(WIDTH, WIDTH * layout.get("height", 400) / 900 + 0.4), layout="constrained")
    axes = figure.add_subplot()
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    if layout["xaxis"].get("showgrid", True):
        axes.grid(color=layout["xaxis"]["gridcolor"], linewidth=0.5)
        axes.set_axisbelow(True)
    for trace in drawing["data"]:
        {"scatter": _scatter, "bar": _bars}.get(trace["type"], _map)(axes, trace)
    for side in ("x", "y"):
        if not (side == "y" and drawing["data"][0]["type"] == "bar"):
            _axis(axes, side, layout[f"{side}axis"])
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=4)
    return figure


def written(figure: Any, path: Path, formats: Sequence[str]) -> list[Path]:
    """The figure as PATH.FORMAT for each; text stays text, and nothing in it depends on the day."""
    import matplotlib as mpl

    known = figure.canvas.get_supported_filetypes()
    for name in formats:
        if name not in known:
            raise ValueError(f"a format is one of {', '.join(known)}, got {name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    files = []
    with mpl.rc_context({"pdf.fonttype": 42, "svg.fonttype": "none", "svg.hashsalt": "trimtab"}):
        for name in formats:
            file = path.with_name(f"{path.name}.{name}")
            dates = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(name)
            figure.savefig(file, format=name, metadata=dates, dpi=300)
            files.append(file)
    return files

"""The loss around trained networks: a surface and a contour map of each, one colour scale for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import Figure, Section
from trimtab.report.traces import dots
from trimtab.studies.curvature.records import Landscape

COLOURS = "Viridis"
SHOWN = 0.8  # quantile of the losses at which the drawn height ends, so that walls do not flatten the middle [ours]


def _heights(found: Landscape, top: float) -> list[list[float | None]]:
    """log10 of the loss, cut off at `top`."""
    return [
        [None if loss is None else math.log10(min(max(loss, 1e-12), top)) for loss in line] for line in found.losses
    ]


def _span(found: Sequence[Landscape]) -> tuple[float, float]:
    values = sorted(loss for one in found for line in one.losses for loss in line if loss is not None)
    top = values[min(len(values) - 1, int(SHOWN * len(values)))]
    return max(values[0], 1e-12), max(top, values[0] * 1.01, 1e-12)


def _ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    steps = [low * (high / low) ** (at / 4) for at in range(5)]
    return [math.log10(step) for step in steps], [f"{step:.2g}" for step in steps]


def landscape_sections(found: Sequence[Landscape]) -> list[Section]:
    """Surfaces, then contours, of the compared networks; one sentence where none was drawn.

    Args:
        found: sections of the loss on planes of directions that were chosen alike.
    """
    title = "Loss landscape"
    if not found:
        return [Section("landscape", title, missing="Not drawn: --landscape adds it.")]
    low, high = _span(found)
    values, texts = _ticks(low, high)
    bar = {"title": {"text": "loss"}, "tickvals": values, "ticktext": texts, "thickness": 10, "outlinewidth": 0}
    colours: dict[str, Any] = {"colorscale": COLOURS, "colorbar": bar}
    surfaces, contours = [], []
    for place, one in enumerate(found):
        heights = _heights(one, high)
        shared = {"x": one.coordinates, "y": one.coordinates, "z": heights}
        name = f"{one.method}, seed {one.seed}"
        lit = {"ambient": 0.8, "diffuse": 0.4, "specular": 0.05}
        axis = {
            "title": {"text": ""},
            "showbackground": False,
            "zeroline": False,
            "gridcolor": "@grid",
            "color": "@muted",
        }
        surfaces.append(
            Figure(
                f"surface-{place}",
                f"{name}: loss of the dense network on a plane through its weights (height and colour logarithmic, cut off at "
                f"{high:.3g}).",
                {"": [{"type": "surface", **shared, **colours, "cmin": values[0], "cmax": values[-1], "lighting": lit,
                       "showscale": False, "hovertemplate": "log\u2081\u2080 loss %{z:.3f}<extra></extra>"}]},
                {
                    "scene": {
                        "xaxis": axis, "yaxis": axis,
                        "zaxis": {**axis, "range": [values[0], values[-1]], "tickvals": values, "ticktext": texts},
                        "camera": {"eye": {"x": 1.65, "y": 1.65, "z": 0.95}, "center": {"x": 0, "y": 0, "z": -0.18}},
                    },
                    "height": 340, "margin": {"l": 0, "r": 0, "t": 0, "b": 0},
                },
                small=True, title=name,
            )
        )  # fmt: skip
        contours.append(
            Figure(
                f"contour-{place}",
                f"{name}: lines of equal loss on the same plane; the cross marks the trained weights.",
                {"": [
                    {"type": "contour", **shared, **colours, "zmin": values[0], "zmax": values[-1],
                     "contours": {"start": values[0], "end": values[-1], "size": (values[-1] - values[0]) / 16},
                     "line": {"width": 0.7}, "hovertemplate": "log\u2081\u2080 loss %{z:.3f}<extra></extra>"},
                    dots("trained weights", Look("#ffffff", marker="x"), [0], [0], None, size=9, showlegend=False),
                ]},
                {
                    "xaxis": {"title": {"text": "first direction"}, "zeroline": False, "showgrid": False,
                              "constrain": "domain"},
                    "yaxis": {"zeroline": False, "showgrid": False, "scaleanchor": "x", "constrain": "domain"},
                    "height": 330, "margin": {"l": 40},
                },
                small=True, title=name,
            )
        )  # fmt: skip
    sentences = [
        f"The dense networks' loss at w + a d + b e: directions d and e {found[0].directions}; a direction moves each "
        "filter by its own norm, so that networks with larger weights do not look flatter. Height and colour: logarithm of "
        f"the loss, one scale for all, cut off at {high:.3g}. Two directions of many: a picture, not a measure."
    ]
    return [
        Section("landscape", title, sentences, surfaces),
        Section("contours", "The same from above", figures=contours),
    ]

"""The figures of a page as Plotly objects, and as files for a paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.report.curvature.networks import curvature_sections
from trimtab.report.gradients.dynamics import dynamics_sections
from trimtab.report.palette import THEMES, looks
from trimtab.report.parts import Figure, Section
from trimtab.report.precision.formats import precision_sections
from trimtab.report.precision.theory import logistic_section
from trimtab.report.weights.page import study_sections
from trimtab.report.weights.study import Study
from trimtab.studies.curvature.records import CurvatureSummary
from trimtab.studies.precision.records import PrecisionStudy
from trimtab.studies.precision.variants import BASELINE
from trimtab.studies.statistics import baseline_of
from trimtab.studies.summary import Dynamics, Summary

Shown = Summary | CurvatureSummary | PrecisionStudy | Sequence[Dynamics]


def _sections(study: Shown) -> list[Section]:
    if isinstance(study, Summary):
        return study_sections(Study(study))
    if isinstance(study, CurvatureSummary):
        return curvature_sections(study)
    if isinstance(study, PrecisionStudy):
        return [*precision_sections(study, looks(study.labels, BASELINE)), logistic_section(study.logistic)]
    labels = list(dict.fromkeys(run.method for run in study))
    if not labels:
        raise ValueError("figures need at least one tracked run, got none")
    return dynamics_sections(study, looks(labels, baseline_of(labels)))


def _colour(token: str, theme: Mapping[str, Any]) -> str:
    name, _, opacity = token.removeprefix("@").partition("/")
    colour = theme["series"][int(name[1:])] if name[1:].isdigit() else theme[name]
    if not opacity:
        return str(colour)
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def painted(value: Any, theme: Mapping[str, Any], key: str = "") -> Any:
    """Plotly's dictionaries with the theme's colours for their tokens, and without what only the page's script reads."""
    if isinstance(value, str):
        return _colour(value, theme) if value.startswith("@") and key.endswith("color") else value
    if isinstance(value, Mapping):
        return {name: painted(item, theme, name) for name, item in value.items() if name != "keep"}
    if isinstance(value, list | tuple):
        return [painted(item, theme, key) for item in value]
    return value


def drawings(study: Shown, theme: str = "light") -> dict[str, dict[str, Any]]:
    """Every figure of a study's page in every state, as plotly's {"data", "layout"} in one theme, by name.

    A figure with a switch has a name for each state: "accuracy-recalibrated".
    """
    if theme not in THEMES:
        raise ValueError(f"theme is one of {', '.join(THEMES)}, got {theme!r}")
    found = {}
    for section in _sections(study):
        for figure in section.figures:
            for state in figure.states:
                found[f"{figure.name}-{state}" if state else figure.name] = _drawing(figure, state, THEMES[theme])
    return found


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(base)
    for name, item in more.items():
        found[name] = _merged(found.get(name, {}), item) if isinstance(item, Mapping) else item
    return found


def _drawing(figure: Figure, state: str, theme: Mapping[str, Any]) -> dict[str, Any]:
    axis = {
        "gridcolor": "@grid",
        "linecolor": "@muted",
        "zerolinecolor": "@rule",
        "tickcolor": "@muted",
        "automargin": True,
    }
    common = {
        "paper_bgcolor": "@paper", "plot_bgcolor": "@paper", "font": {"color": "@ink", "size": 13},
        "xaxis": axis, "yaxis": axis, "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    }  # fmt: skip
    layout = _merged(_merged(common, figure.layout), figure.layouts.get(state, {}))
    return {"data": painted(figure.states[state], theme), "layout": painted(layout, theme)}


def figures(study: Shown, theme: str = "light") -> dict[str, Any]:
    """The figures of a study's page as `plotly.graph_objects.Figure`, by name: to change, to show in a notebook, to save.

    Args:
        study: a `Summary`, `CurvatureSummary` or `PrecisionStudy`, or the `Dynamics` of tracked runs.
        theme: "light" or "dark".

    Raises:
        ValueError: another theme, or no run.
        ImportError: plotly (extra `figures`) is not installed.
    """
    try:
        import plotly.graph_objects as go
    except ImportError as error:
        raise ImportError("figures() needs plotly: pip install 'trimtab[figures]'") from error
    return {name: go.Figure(drawing) for name, drawing in drawings(study, theme).items()}


def save_figures(
    study: Shown, folder: Path, formats: Sequence[str] = ("pdf",), names: Sequence[str] | None = None
) -> list[Path]:
    """Draw the figures of a study with matplotlib and write them as files for a paper, such as PDF or SVG.

    Args:
        study: as of `figures`.
        folder: where FIGURE.FORMAT go; made when absent.
        formats: endings that matplotlib writes.
        names: of the figures; None for all but surfaces, which matplotlib is not asked for.

    Returns:
        The files.

    Raises:
        ValueError: a name or a format that there is not.
        ImportError: matplotlib (extra `figure-files`) is not installed.
    """
    from trimtab.report.paper import drawn, written  # matplotlib is an extra, and slow to import

    found = {name: one for name, one in drawings(study).items() if all(t["type"] != "surface" for t in one["data"])}
    wanted = list(found if names is None else names)
    if unknown := [name for name in wanted if name not in found]:
        raise ValueError(f"there is no figure {unknown[0]!r}; there are {', '.join(found)}")
    return [file for name in wanted for file in written(drawn(found[name]), Path(folder) / name, formats)]

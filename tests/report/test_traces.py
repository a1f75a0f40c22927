"""What every figure of every page keeps: no point beyond its axis, one look per name."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.report.factory import make_dynamics, make_summary
from tests.report.precision_factory import curves, precision_study
from tests.report.test_curvature import TRACK, figures
from tests.report.test_curvature import summary as curvature_summary
from tests.studies.curvature.test_conclusions import row
from trimtab.report import render, render_curvature, render_dynamics
from trimtab.report.curvature.networks import eigenvalues_section
from trimtab.report.palette import Look, looks
from trimtab.report.parts import halvings
from trimtab.report.precision.theory import render_precision
from trimtab.report.traces import band, dots, holding, line

METHODS = ("sgd", "var", "sam", "cram+")
NINE = (*METHODS, "var+sam", "l1", "adamw", "var[var.strength=1e-05]", "var[var.strength=0.0001]")


def nine_methods(sparsities: tuple[float, ...]) -> Any:
    """A study of curvature so wide that its methods do not fit between the ticks by a fixed distance."""
    rows = [row(m, 0, 1 / (at + 1), 0.9 - 0.05 * at, s) for at, m in enumerate(NINE) for s in sparsities]
    return curvature_summary(rows=rows, tracks=[TRACK])


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The figures of every kind of page; methods stand in another order on each."""
    folder = tmp_path_factory.mktemp("pages")
    study = make_summary(METHODS).model_copy(update={"dynamics": make_dynamics(METHODS, (0, 1), steps=40)})
    dice = make_summary(("sam", "sgd"), (0,), metric="dice")
    wild = precision_study()
    first = wild.of("e4m3")[0]
    runs = [
        run.model_copy(update={"shrinkage": curves(0.9).model_copy(update={"q": [-2.0, 4.0, 1, 1, 1, 1]})})
        if run.label == first.label
        else run
        for run in wild.runs
    ]
    low = wild.logistic[1].model_copy(update={"prediction": [1e-3] * 4})
    written = {
        "study": render(study, folder / "a.html"),
        "dice": render(dice, folder / "b.html"),
        "curvature": render_curvature(curvature_summary(), folder / "c.html"),
        "nine": render_curvature(nine_methods((0.0, 0.2)), folder / "d.html"),
        "gradients": render_dynamics(
            make_dynamics(("cram+", "var"), (0,), steps=40),
            folder / "e.html",
            name="n",
            headline="h",
            facts=[],
            recipe="",
        ),
        "precision": render_precision(
            wild.model_copy(update={"runs": runs, "logistic": [low, *wild.logistic]}), folder / "f.html"
        ),
    }
    return {name: figures(Path(file).read_text()) for name, file in written.items()}


def drawn(pages: dict[str, dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(where, trace, layout) of each scatter trace but the bands."""
    for page, found in pages.items():
        for name, figure in found.items():
            for state, traces in figure["states"].items():
                layout = figure["layout"] | figure["layouts"].get(state, {})
                for trace in traces:
                    if trace["type"] == "scatter" and trace.get("fill") != "toself":
                        yield f"{page}/{name}/{state}/{trace.get('name')}", trace, layout


def test_every_axis_holds_every_point_of_every_page(pages: dict[str, dict[str, Any]]) -> None:
    seen = 0
    for where, trace, layout in drawn(pages):
        for side in ("x", "y"):
            axis = layout[f"{side}axis"]
            if "range" not in axis:
                continue
            low, high = sorted(axis["range"])
            for value in trace[side]:
                if value is not None:
                    place = math.log10(value) if axis.get("type") == "log" else value
                    assert low <= place <= high, (where, side, value)
                    seen += 1
    assert seen > 500


def test_marks_at_the_edge_are_whole(pages: dict[str, dict[str, Any]]) -> None:
    assert not [where for where, trace, _ in drawn(pages) if trace.get("cliponaxis") is not False]


def test_a_name_has_one_look_on_every_page(pages: dict[str, dict[str, Any]]) -> None:
    found: dict[str, set[tuple[str, str, str]]] = {}
    for where, trace, _ in drawn(pages):
        name = trace.get("name")
        if name not in NINE or "controls" in where:
            continue
        for part, key in (("line", "dash"), ("marker", "symbol")):
            if part in trace:
                found.setdefault(name, set()).add((trace[part]["color"], key, trace[part][key]))
    assert set(found) == set(NINE)
    for name, seen in found.items():
        assert len({colour for colour, *_ in seen}) == 1, name
        assert len({value for _, key, value in seen if key == "dash"}) <= 1, name
        assert len({value for _, key, value in seen if key == "symbol"}) == 1, name
    assert {colour for colour, *_ in found["sam"]} == {"@s2"}


@pytest.mark.parametrize("sparsities", [(0.0,), (0.0, 0.2), (0.0, 0.9, 0.91, 0.99)])
def test_methods_of_one_sparsity_stand_apart_from_those_of_the_next(sparsities: tuple[float, ...]) -> None:
    summary = nine_methods(sparsities)
    figure = eigenvalues_section(summary, looks(NINE, "sgd")).figures[0]
    low, high = figure.layout["xaxis"]["range"]
    span = (halvings(sparsities[-1]) - halvings(sparsities[0])) or 1.0
    xs = sorted(x for trace in figure.states[""] for x in trace["x"])
    assert low <= xs[0] - 0.0399 * span
    assert high >= xs[-1] + 0.0399 * span
    places = [halvings(sparsity) for sparsity in sparsities]
    nearest = [min(range(len(places)), key=lambda at: abs(places[at] - x)) for x in xs]
    assert nearest == sorted(nearest)
    assert all(nearest.count(at) == len(NINE) for at in range(len(places)))


def test_a_line_of_one_value_is_a_point() -> None:
    look = Look("@s3", "dot", "x")
    one, two = line("m", look, [1], [0.5], None), line("m", look, [1, 2], [0.5, 0.25], "%{y}", group=True)
    assert (one["mode"], one["marker"]["symbol"], one["hoverinfo"]) == ("markers", "x", "skip")
    assert (two["mode"], "marker" in two, two["hovertemplate"], two["legendgroup"]) == (
        "lines",
        False,
        "%{y}<extra></extra>",
        "m",
    )
    assert line("m", look, [1, 2], [0.5, None], None)["mode"] == "markers"
    assert dots("<b>", look, [1], [2], None)["name"] == "&lt;b&gt;"


def test_a_band_goes_there_and_back() -> None:
    found = band("m", "@s1/0.2", [1, 2], [0.1, 0.2], [0.3, 0.5])
    assert found["x"] == [1, 2, 2, 1]
    assert found["y"] == [0.3, 0.5, 0.2, 0.1]


def test_an_axis_grows_only_where_a_value_lies_beyond() -> None:
    assert holding([0.5, None], 0.0, 1.0) == [0.0, 1.0]
    assert holding([-1.0, 3.0], 0.0, 1.0, margin=0.25) == [-2.0, 4.0]

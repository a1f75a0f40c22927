"""The page of `trimtab curvature` and the curves of tracked runs, from made-up numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.factory import make_summary
from tests.studies.curvature.test_conclusions import row
from trimtab.report import render, render_curvature
from trimtab.report.curvature.landscape import landscape_sections
from trimtab.report.curvature.networks import curvature_sections
from trimtab.report.weights.terminal import curvature_table
from trimtab.runs.recipe import Recipe
from trimtab.studies.curvature.records import (
    CurvatureSettings,
    CurvatureSummary,
    Density,
    Landscape,
)
from trimtab.studies.summary import CurvatureTrack

TRACK = CurvatureTrack(
    method="sgd", seed=0, batch=1024, epochs=[1, 2], eigenvalues=[8.0, 4.0], residuals=[0.1, 0.1], sharpness=[0.4, 0.2]
)


def landscape(method: str, losses: list[list[float | None]]) -> Landscape:
    return Landscape(
        method=method,
        seed=0,
        sparsity=0.0,
        directions="random",
        coordinates=[-1.0, 0.0, 1.0],
        losses=losses,
        centre=0.1,
    )


def summary(**changes: object) -> CurvatureSummary:
    rows = [
        row(method, seed, sharp + 0.1 * seed, 0.6 - 0.3 * sparsity * sharp, sparsity)
        for method, sharp in (("sgd", 1.0), ("var<b>", 0.5), ("sam", 0.4), ("cram+", 0.3))
        for seed in (0, 1)
        for sparsity in (0.0, 0.9)
    ]
    given: dict[str, object] = {
        "name": "made up", "headline": "a < b", "created": "2026-01-01", "command": "trimtab curvature DIR",
        "metric": "accuracy", "recipe": Recipe().model_dump(mode="json"), "settings": CurvatureSettings(),
        "versions": {"torch": "2"}, "hardware": {"cores": 2}, "rows": rows,
        "densities": [
            Density(method="sgd", seed=0, sparsity=0.0, start=-1.0, step=1.0, values=[0.1, 0.8, 1e-9], width=0.5,
                    negative=0.1, products=8)
        ],
        "landscapes": [landscape("sgd", [[9.0, 2.0, None], [1.0, 0.1, 1.0], [3.0, 2.0, 5.0]])],
        "tracks": [TRACK],
    }  # fmt: skip
    return CurvatureSummary.model_validate(given | changes)


def figures(text: str) -> dict[str, dict[str, object]]:
    found = re.search(r'<script type="application/json" id="page">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found.group(1))["figures"]


def test_the_page_shows_everything_and_escapes_labels(tmp_path: Path) -> None:
    text = render_curvature(summary(), tmp_path / "page.html").read_text()
    assert "var&lt;b&gt;" in text
    assert "var<b>" not in text
    assert "8 dense networks: largest eigenvalue from" in text
    names = {name.removeprefix("s0-figure-") for name in figures(text)}
    wanted = {"eigenvalues", "density-0", "surface-0", "contour-0", "track-eigenvalue", "track-sharpness"}
    assert wanted <= names
    assert len([name for name in names if name.startswith("scatter-")]) == 4
    assert "Does flatter go with more robust?" in text
    data = re.search(r'id="s0-data">(.*?)</script>', text, re.S)
    assert data is not None
    assert CurvatureSummary.model_validate_json(data.group(1)) == summary()


def test_every_point_stands_within_its_residual() -> None:
    section = next(part for part in curvature_sections(summary()) if part.name == "eigenvalues")
    traces = section.figures[0].states[""]
    assert sum(len(trace["y"]) for trace in traces) == 16
    assert traces[0]["error_y"]["array"] == [0.1] * 4
    assert section.figures[0].layout["yaxis"]["type"] == "log"


def test_ratios_and_correlations_are_marked_only_when_sure() -> None:
    sections = {part.name: part for part in curvature_sections(summary())}
    ratios = sections["measures"].tables[-1]
    assert ratios.name == "ratios"
    assert len(ratios.rows) == 6
    lines = sections["scatter"].tables[0].rows
    assert all(cell.text.count("to") == 1 for line in lines for cell in line[3:])


def test_what_is_missing_is_said() -> None:
    sections = {part.name: part for part in curvature_sections(summary(densities=[], landscapes=[], tracks=[]))}
    assert "--density-probes" in sections["density"].missing
    assert "--landscape" in sections["landscape"].missing
    assert "track" not in sections
    one = summary(rows=[row("sgd", 0, 1.0, 0.5)])
    assert [table.name for part in curvature_sections(one) if part.name == "measures" for table in part.tables] == [
        "measures-0", "relative-0",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="at least one"):
        render_curvature(summary(rows=[]), Path("unused"))


def test_surfaces_share_one_scale_and_keep_holes() -> None:
    pair = [
        landscape("sgd", [[9.0, 2.0, None], [1.0, 0.1, 1.0], [3.0, 2.0, 5.0]]),
        landscape("var", [[1.0] * 3, [1.0, 0.01, 1.0], [1.0] * 3]),
    ]
    surfaces, contours = landscape_sections(pair)
    traces = [figure.states[""][0] for figure in surfaces.figures]
    assert len({(trace["cmin"], trace["cmax"]) for trace in traces}) == 1
    assert traces[0]["z"][0][2] is None
    assert traces[0]["z"][1][1] == pytest.approx(-1)
    assert max(value for line in traces[0]["z"] for value in line if value is not None) == pytest.approx(
        traces[0]["cmax"]
    )
    assert len(contours.figures) == 2


def test_a_study_draws_tracked_curvature(tmp_path: Path) -> None:
    study = make_summary(("sgd", "var"))
    text = render(study.model_copy(update={"curvature": [TRACK]}), tmp_path / "page.html").read_text()
    drawn = figures(text)["s0-figure-track-eigenvalue"]["states"]
    measured, averaged = drawn[""]  # type: ignore[index]
    assert measured["y"] == [8.0, 4.0]
    assert averaged["y"] == pytest.approx([8.0, 7.6])
    assert "1,024 training images" in text
    assert "track-eigenvalue" not in render(study, tmp_path / "other.html").read_text()


def test_terminal_table() -> None:
    console = Console(width=80, record=True)
    console.print(curvature_table(summary().rows, 0.9))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 80
    assert "sgd, 1" in text
    assert "110±0.1" in text

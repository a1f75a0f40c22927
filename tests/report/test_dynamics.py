"""The dynamics part of the page: figures from made-up runs, what is missing is said, a page of its own."""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path

import pytest

from tests.report.factory import LAYERS, make_dynamics, make_summary
from tests.report.test_page import EVIL, page_of, read
from trimtab.report import render, render_dynamics
from trimtab.report.gradients.dynamics import dynamics_sections
from trimtab.report.palette import looks
from trimtab.report.parts import Figure
from trimtab.studies.summary import AlarmRow, Dynamics, Summary


def figures(found: list[Dynamics]) -> dict[str, Figure]:
    labels = list(dict.fromkeys(run.method for run in found))
    return {f.name: f for section in dynamics_sections(found, looks(labels, labels[0])) for f in section.figures}


def test_std_figure_has_a_line_and_a_band_for_each_method() -> None:
    found = make_dynamics(("sgd", "var"), (0, 1, 2), steps=60)
    traces = {trace["name"]: trace for trace in figures(found)["dynamics-std"].states[""]}
    assert set(traces) == {"sgd", "var", "sgd, interval", "var, interval"}
    own = [run for run in found if run.method == "var"]
    assert own[0].std[10] is None  # the made-up NaN: a gap, not a number
    assert traces["var"]["x"] == [step for step in own[0].steps if step != own[0].steps[10]]
    logs = [math.log10(run.std[-1] or 0) for run in own]
    assert traces["var"]["y"][-1] == pytest.approx(10 ** (sum(logs) / 3), rel=1e-4)
    half = 4.302653 * statistics.stdev(logs) / math.sqrt(3)  # Student's t, two degrees of freedom
    high = traces["var, interval"]["y"][58]
    assert math.log10(high) == pytest.approx(sum(logs) / 3 + half, rel=1e-4)


def test_heat_maps_share_one_scale_and_name_their_layers() -> None:
    found = make_dynamics(("sgd", "var", "sam"), (0, 1), steps=60)
    maps = [figure for name, figure in figures(found).items() if name.startswith("dynamics-layers")]
    assert [figure.title for figure in maps] == ["sgd, seed 0", "var, seed 0", "sam, seed 0"]
    assert all(figure.small for figure in maps)
    traces = [figure.states[""][0] for figure in maps]
    assert len({(trace["zmin"], trace["zmax"]) for trace in traces}) == 1
    assert traces[0]["z"] == [layer.log10_std for layer in found[0].layers]
    assert [row[0][0] for row in traces[0]["customdata"]] == list(LAYERS)
    assert maps[0].layout["yaxis"]["range"] == [len(LAYERS) - 0.5, -0.5]  # the first layer at the top
    assert not any(
        figure.small
        for name, figure in figures(make_dynamics(("sgd",), (0,), steps=9)).items()
        if name.startswith("dynamics-layers")
    )


def test_alpha_ratio_and_counts_are_drawn_and_absent_ones_said() -> None:
    found = make_dynamics(("sgd",), (0,), steps=60)
    drawn = figures(found)
    alpha = drawn["dynamics-signal-0"]
    assert alpha.title == "alpha"
    assert alpha.states[""][0]["y"] == found[0].signals["alpha"]
    assert "dynamics-signal-1" not in drawn  # sigma is the global deviation, drawn above
    assert max(drawn["dynamics-non-finite"].states[""][0]["y"]) == 2
    assert max(drawn["dynamics-dead"].states[""][0]["y"]) == 1
    assert drawn["dynamics-update"].states[""][0]["y"] == pytest.approx(found[0].update_ratio)
    quiet = found[0].model_copy(update={"dead": [0] * 60, "non_finite": [0] * 60, "update_ratio": [], "signals": {}})
    last = dynamics_sections([quiet], looks(["sgd"], "sgd"))[-1]
    assert not last.figures
    for sentence in ("zero everywhere", "NaN or infinite", "Updates were not tracked"):
        assert any(sentence in text for text in last.sentences)


def test_report_holds_the_dynamics_and_says_when_there_are_none(tmp_path: Path) -> None:
    summary = make_summary(("sgd", EVIL), (0,)).model_copy(update={"dynamics": make_dynamics(("sgd", EVIL), (0,))})
    reader = read(summary, tmp_path)
    assert {f"s0-figure-dynamics-{name}" for name in ("std", "layers-0", "layers-1", "update", "dead")} <= set(
        page_of(reader)["figures"]
    )
    assert not [tag for tag, _ in reader.elements if tag == "img"]
    assert "No run was tracked" in read(make_summary(("sgd",), (0,)), tmp_path).text


def test_old_summaries_are_read(tmp_path: Path) -> None:
    data = make_summary(("sgd",), (0,)).model_dump(mode="json", by_alias=True)
    del data["dynamics"]
    (tmp_path / "summary.json").write_text(json.dumps(data))
    assert Summary.read(tmp_path / "summary.json").dynamics == []


def test_a_page_of_dynamics_alone(tmp_path: Path) -> None:
    found = make_dynamics(("sgd", EVIL), (0, 1), steps=40)
    path = render_dynamics(
        found, tmp_path / "g.html", name="mine", headline="one sentence", facts=[("runs", EVIL)], recipe="epochs: 1"
    )
    text = path.read_text(encoding="utf-8")
    assert "one sentence" in text
    assert "<img" not in text.split("<script>")[0]
    with pytest.raises(ValueError, match="at least one tracked run"):
        render_dynamics([], tmp_path / "h.html", name="x", headline="", facts=[], recipe="")
    assert not (tmp_path / "h.html").exists()
    with pytest.raises(ValueError, match="no rows"):
        render(make_summary().model_copy(update={"rows": []}), tmp_path / "h.html")


def test_alarms_stand_on_the_time_line_and_in_a_table() -> None:
    found = make_dynamics(("sgd",), (0,), steps=60)
    alarm = AlarmRow(
        step=found[0].steps[1], kind="gradient", action="skip", text="step 9: norm is 5; the step is not taken"
    )
    guarded = [found[0].model_copy(update={"alarms": [alarm]})]
    plain, marked = figures(found)["dynamics-std"], figures(guarded)["dynamics-std"]
    (cross,) = [trace for trace in marked.states[""] if trace.get("marker", {}).get("symbol") == "x"]
    assert cross["x"] == [found[0].steps[1]]
    assert cross["y"] == [found[0].std[1]]
    assert cross["text"] == [alarm.text]
    assert len(marked.states[""]) == len(plain.states[""]) + 1
    (section,) = [one for one in dynamics_sections(guarded, looks(["sgd"], "sgd")) if one.name == "dynamics-alarms"]
    assert section.tables[0].rows[0][-1].text == "norm is 5; the step is not taken"
    assert not [one for one in dynamics_sections(found, looks(["sgd"], "sgd")) if one.name == "dynamics-alarms"]

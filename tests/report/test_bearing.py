"""What networks bear while they train: the fall from the highest rate to the end, the figures, the verdict."""

from __future__ import annotations

import pytest

from tests.report.factory import make_summary
from trimtab.report.weights.bearing import bearing_section
from trimtab.report.weights.page import study_sections
from trimtab.report.weights.study import Study
from trimtab.runs.metric import METRICS
from trimtab.studies.bearing import falls
from trimtab.studies.summary import BearingTrack


def track(method: str, seed: int, dense: list[float], pruned: list[float | None], rates: list[float]) -> BearingTrack:
    return BearingTrack(
        method=method, seed=seed, images=500, epochs=[5 * (place + 1) for place in range(len(dense))], learning_rates=rates,
        dense=list(dense), sparsities={"0.8": pruned}, bits={"4": list(dense)}, critical=[0.3, 0.2, None][: len(dense)],
        critical_open=[0, 1, 0][: len(dense)], cost=0.021,
    )  # fmt: skip


RATES = [0.05, 0.1, 0.0]
TRACKS = [
    track("sgd", seed, [0.5, 0.8, 0.9], [0.4, 0.78 + 0.001 * seed, 0.75], RATES) for seed in range(3)
]  # the highest rate is the second point: lost 0.02 - 0.001 seed there, 0.15 at the end


def test_the_fall_is_counted_from_the_highest_rate() -> None:
    by_state = {one.state: one for one in falls(TRACKS, METRICS["accuracy"])}
    assert by_state["80 %"].early == pytest.approx(0.019)
    assert by_state["80 %"].late == pytest.approx(0.15)
    assert by_state["80 %"].change.mean == pytest.approx(0.131)
    assert by_state["80 %"].change.excludes_zero
    assert by_state["4 bits"].change.mean == 0
    bits = falls([track("sgd", 0, [3.0, 2.5, 2.2], [3.1, 2.6, 2.9], RATES)], METRICS["bits_per_byte"])
    assert bits[0].change.mean == pytest.approx(0.6)  # more bits are a loss


def test_runs_that_say_nothing_are_left_out() -> None:
    constant = track("sgd", 0, [0.5, 0.9], [0.4, 0.8], [0.1, 0.2])  # its highest rate is its last
    broken = track("sgd", 1, [0.5, 0.8, 0.9], [0.4, 0.7, None], RATES)
    assert falls([constant], METRICS["accuracy"]) == []
    assert [one.state for one in falls([broken], METRICS["accuracy"])] == ["4 bits"]


def test_the_section_draws_what_is_lost_and_judges() -> None:
    summary = make_summary().model_copy(update={"bearing": TRACKS})
    study = Study(summary)
    section = bearing_section(study)
    assert section is not None
    assert "less for sgd at 80 %; for the others the interval holds zero" in " ".join(section.sentences)
    assert "It took 2.1% of training's" in section.sentences[0]
    lost, rate = section.figures
    assert [round(value, 4) for value in lost.states[""][0]["y"]] == [10.0, 2.0, 15.0]  # points
    assert rate.layout["yaxis"]["type"] == "log"
    (row, _) = section.tables[0].rows
    assert (row[1].text, row[5].mark) == ("80 %", "harm")
    assert "bearing" in [one.name for one in study_sections(study)]
    assert bearing_section(Study(make_summary())) is None
    single = summary.model_copy(update={"bearing": TRACKS[:1]})
    said = bearing_section(Study(single))
    assert said is not None
    assert "With one seed there is no interval" in " ".join(said.sentences)

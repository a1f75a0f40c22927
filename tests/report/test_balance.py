"""The section on VAR and weight decay: there when a run has a clock, its numbers those of the records."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.factory import make_summary
from trimtab.report.weights.balance import balance_section
from trimtab.report.weights.page import render
from trimtab.report.weights.study import Study
from trimtab.studies.summary import Summary


def told(seed: int, time: float) -> dict[str, float | None]:
    whole = {"T": time, "tau": 1.5, "V0/V*": 0.5, "V/V*": 0.9, "CV": 1.25 + seed}
    layers = {"T a.weight": time, "V0/V* a.weight": 0.4, "V/V* a.weight": 0.8, "CV a.weight": 1.0}
    return {**whole, **layers, "T b.weight": time, "V0/V* b.weight": 0.6, "V/V* b.weight": None}


def with_clock(time: float = 1.2) -> Summary:
    summary = make_summary(("sgd", "var"), (0, 1))
    runs = [
        run.model_copy(update={"levers": {"var": told(run.seed, time)}}) if run.method == "var" else run
        for run in summary.runs
    ]
    return summary.model_copy(update={"runs": runs})


def test_without_a_clock_there_is_no_section() -> None:
    assert balance_section(Study(make_summary())) is None


@pytest.mark.parametrize(("time", "verdict"), [(1.2, "yes"), (0.49, "no")])
def test_table_and_figures_hold_the_records_numbers(time: float, verdict: str) -> None:
    section = balance_section(Study(with_clock(time)))
    assert section is not None
    (table,) = section.tables
    assert [cell.text for cell in table.rows[1]] == ["var", "1", f"{time:.2f}", "1.50", "0.50", "0.90", "2.25", verdict]
    rest, clock = section.figures
    (layers,) = rest.states[""]
    assert (layers["x"], layers["y"]) == ([0.4, 0.4], [0.8, 0.8])  # b's end is not known
    runs, alone = clock.states[""]
    assert (runs["x"], runs["y"]) == ([time, time], [1.25, 2.25])
    assert alone["y"][0] == pytest.approx(0.7555, abs=1e-4)
    assert alone["y"][-1] == pytest.approx(alone["y"][0] * 2.718281828**time)


def test_the_page_shows_it_and_a_summary_keeps_it(tmp_path: Path) -> None:
    summary = with_clock()
    summary.write(tmp_path / "summary.json")
    again = Summary.read(tmp_path / "summary.json")
    assert again.runs == summary.runs
    text = render(again, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "VAR and weight decay" in text
    assert "VAR and weight decay" not in render(make_summary(), tmp_path / "other.html").read_text(encoding="utf-8")

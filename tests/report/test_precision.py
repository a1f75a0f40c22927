"""The page of `trimtab precision` and its table in the terminal, from made-up numbers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from tests.report.precision_factory import LAYERS, format_run, precision_study, with_products
from trimtab.cli.precision_command import format_table, product_table
from trimtab.report.palette import looks
from trimtab.report.parts import Figure, Section
from trimtab.report.precision.formats import middle, precision_sections
from trimtab.report.precision.theory import logistic_section, render_precision
from trimtab.studies.precision.records import PrecisionStudy


def sections(study: PrecisionStudy) -> dict[str, Section]:
    found = [*precision_sections(study, looks(study.labels, "full")), logistic_section(study.logistic)]
    return {section.name: section for section in found}


def traces(figure: Figure) -> dict[str, dict[str, object]]:
    return {str(trace["name"]): trace for views in figure.states.values() for trace in views}


def test_every_label_has_its_accuracy_with_whiskers_and_a_diverged_one_none() -> None:
    quality = sections(precision_study())["precision"]
    drawn = traces(quality.figures[0])
    assert set(drawn) == set(precision_study().labels) - {"e5m2"}
    assert drawn["full"]["x"] == [pytest.approx(90.0)]
    rows = {row[0].text: [cell.text for cell in row] for row in quality.tables[0].rows}
    assert rows["e5m2"][1:5] == ["0 of 3", "", "", ""]
    assert rows["int4"][1] == "2 of 3"
    assert rows["e2m1"][5].startswith("\N{MINUS SIGN}40.0")
    shrunk = {row[0].text: [cell.text for cell in row] for row in quality.tables[1].rows}
    assert shrunk["e2m1"][1:3] == ["0.300", "0.250"]
    assert shrunk["e2m1"][-1] == "first"


def test_lines_and_heat_maps_hold_the_measured_numbers() -> None:
    found = sections(precision_study())
    lines = traces(found["precision-q"].figures[0])
    assert set(lines) == set(precision_study().labels) - {"full"}
    assert lines["e4m3"]["x"] == [0, 10, 20, 30, 40, 50]
    assert lines["e4m3"]["y"] == [0.99] * 6
    maps = found["precision-layers"].figures
    assert len(maps) == 8
    (heat,) = maps[0].states[""]
    assert [row[0] for row in heat["z"]] == [pytest.approx(0.98), 0.99, 0.99]
    assert heat["z"][0][-1] is None
    assert [row[0].text for row in found["precision-layers"].tables[0].rows[:3]] == list(LAYERS)
    assert {figure.title for figure in found["precision-noise"].figures} == {
        "dead entries, %", "overflowing entries, %", "noise to signal, %",
    }  # fmt: skip


def test_prediction_and_bound_are_drawn_over_the_measurement_where_there_are_any() -> None:
    section = sections(precision_study())["logistic"]
    names = [set(traces(figure)) for figure in section.figures]
    assert names == [{"measured, interval", "measured", "predicted", "bound"}] * 2 + [
        {"measured, interval", "measured"}
    ]
    assert section.tables[0].rows[2][-1].text.startswith("in some step every entry")


def test_what_is_missing_is_said() -> None:
    bare = precision_study().model_copy(
        update={"runs": [format_run("full", 0, 0.9), format_run("e4m3", 0, 0.8)], "logistic": []}
    )
    found = sections(bare)
    assert "No run was metered" in str(found["precision-q"].missing)
    assert "Nothing to compare" in str(found["precision-effects"].missing)
    assert "--no-logistic" in str(found["logistic"].missing)
    assert "precision-layers" not in found
    with pytest.raises(ValueError, match="at least one run, got none"):
        render_precision(bare.model_copy(update={"runs": []}), Path("never.html"))


def test_the_page_is_one_file_with_its_data_and_escapes_names(tmp_path: Path) -> None:
    evil = "</script><b onclick=alert(1)>"
    page = render_precision(precision_study(evil), tmp_path / "page.html").read_text(encoding="utf-8")
    assert evil not in page
    assert "one &lt; two" in page
    assert not re.search(r"<(?:script|img|link)[^>]*(?:src|href)=", page)
    assert "Incomplete, 1 of 28 runs is missing (1 not started)" in page
    assert "int8, seed 1: not started" in page
    blobs = re.findall(r"<script[^>]*type=\"application/json\"[^>]*>(.*?)</script>", page, re.DOTALL)
    assert any(evil in json.dumps(json.loads(blob)) for blob in blobs)


def test_the_table_fits_eighty_columns_and_names_what_diverged() -> None:
    console = Console(width=80, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        console.print(format_table(precision_study()))
    text = captured.get()
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "diverged" in text
    assert "90.0" in text


def with_dead(study: PrecisionStudy, values: list[float]) -> PrecisionStudy:
    """The study's runs of e4m3, as many as values, each with that median of dead entries, and a curve of others."""
    runs = []
    for run, value in zip(study.of("e4m3"), values, strict=False):
        assert run.shrinkage is not None
        own = run.shrinkage.model_copy(update={"dead": [0.5, 0.7] * 3, "dead_median": value, "q_median": 1 - value})
        runs.append(run.model_copy(update={"shrinkage": own}))
    return study.model_copy(update={"runs": runs})


@pytest.mark.parametrize(("values", "dead", "q"), [([0.0, 0.0, 0.9], 0.0, 1.0), ([0.2, 0.6], 40.0, 0.6)])
def test_page_and_terminal_show_medians(values: list[float], dead: float, q: float) -> None:
    study = with_dead(precision_study(), values)
    row = [cell.value for cell in sections(study)["precision"].tables[1].rows[0]]
    assert (row[1], row[3]) == (pytest.approx(q), pytest.approx(dead))
    columns = {str(column.header): list(column.cells) for column in format_table(study).columns}
    assert (columns["q"], columns["dead"]) == ([f"{q:g}"], [f"{dead:g}"])


def test_the_middle_of_an_even_number_is_between_its_middle_two() -> None:
    assert middle([0.9, None, 0.1, 0.6, 0.2]) == pytest.approx(0.4)
    assert middle([3.0, 1.0, 2.0]) == 2.0
    assert middle([None]) is None


def test_products_have_a_section_a_table_and_a_prediction(tmp_path: Path) -> None:
    study = with_products()
    section = sections(study)["products"]
    assert "products" not in sections(precision_study())
    parts, prediction = section.figures
    assert traces(parts)["dead zone"]["x"] == [0.2] * 8
    assert traces(prediction)["mxfp4"]["x"] == [pytest.approx(0.02)]
    assert traces(prediction)["mxfp4"]["y"] == [pytest.approx(0.3)]
    assert section.sentences[-2:] == [
        "Rank correlation of the predicted rise of the loss early on with the measured gap: +1.00.",
        "Rank correlation of the squared error early on with the measured gap: \N{MINUS SIGN}1.00.",
    ]
    rows = {row[0].text: [cell.text for cell in row] for row in section.tables[1].rows}
    assert rows["nvfp4"][-1] == "last (75 %)"
    layers = section.tables[2].rows
    assert len(layers) == 4 * 3 * 2
    assert [cell.text for cell in layers[4]][:3] == ["mxfp8", "fprop weight", "first"]
    assert layers[4][7].text == "10"
    page = render_precision(study, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Errors in three parts, and the loss they predict" in page
    table = product_table(study)
    assert table is not None
    console = Console(width=160, record=True)
    console.print(table)
    text = console.export_text()
    assert "rank correlation of predicted and measured gap +1.00" in text
    assert re.search(r"nvfp4 +fprop +0.98 +0.1 +0.2 +0.3 +0.010", text)
    assert product_table(precision_study()) is None

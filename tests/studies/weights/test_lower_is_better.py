"""Bits per byte: what is lower is better, in every table, sentence and choice."""

from __future__ import annotations

import pytest

from trimtab.cli.study import best_network
from trimtab.report.weights.contrasts import contrasts_section
from trimtab.report.weights.page import study_sections
from trimtab.report.weights.study import Study
from trimtab.report.weights.terminal import terminal_table
from trimtab.report.weights.verdict import verdict
from trimtab.runs.metric import METRICS
from trimtab.runs.recipe import Recipe
from trimtab.studies.contrasts import Contrast, judge
from trimtab.studies.latex import best_of
from trimtab.studies.model_card import Shared, model_card
from trimtab.studies.statistics import table
from trimtab.studies.summary import Row, Run, Summary
from trimtab.studies.variants import variants
from trimtab.studies.weights.headline import headline, operating_point
from trimtab.studies.weights.tuning import choose, pruning_score
from trimtab.studies.weights.verdict import held

BITS = METRICS["bits_per_byte"]
CHANCE = 4.5
SPARSITIES = (0.0, 0.5, 0.8)


def rows(method: str, *means: float | None, split: str = "test") -> list[Row]:
    """Means at dense, 50 and 80 %, three seeds around each; the bytes guessed right tell the opposite story."""
    return [
        Row(
            method=method, seed=seed, sparsity=sparsity, sparsity_total=sparsity, recalibrated=False, split=split,
            accuracy=0.1 * (mean or 0), loss=1.0, bits_per_byte=None if mean is None else mean + 0.001 * (seed - 1),
            perplexity=None if mean is None else 2**mean, file_bytes=1000, dense_bytes=9000,
        )
        for mean, sparsity in zip(means, SPARSITIES, strict=True)
        for seed in range(3)
    ]  # fmt: skip


ROWS = [*rows("sgd", 2.20, 2.40, 3.90), *rows("l1", 2.21, 2.22, 2.60), *rows("late", 2.40, 2.41, 2.42)]


def summary(rows: list[Row] = ROWS) -> Summary:
    methods = dict.fromkeys(row.method for row in rows)
    runs = [
        Run(
            method=method, seed=seed, folder=f"{method}/{seed}", epochs=1, steps=5, train_seconds=1.0, step_seconds=0.1,
            train_loss=1.5, validation_accuracy=0.1, validation_bits_per_byte=2.2 + 0.1 * (seed - 1) ** 2,
        )
        for method in methods for seed in range(3)
    ]  # fmt: skip
    return Summary(
        name="texts", headline=headline(rows, "bits_per_byte", CHANCE), created="", metric="bits_per_byte", chance=CHANCE,
        recipe={}, versions={}, hardware={}, runs=runs, rows=rows,
    )  # fmt: skip


def test_the_best_of_a_column_has_the_fewest_bits() -> None:
    entries = table(ROWS, field="bits_per_byte")
    dense = [entry for entry in entries if entry.sparsity == 0]
    for column, best in ((dense, "sgd"), ([entry for entry in entries if entry.sparsity == 0.8], "late")):
        assert best_of({e.method: [(seed, BITS.gain(value)) for seed, value in e.values] for e in column}) == {best}
    text = summary().to_latex()
    assert r"Bits per byte by sparsity" in text
    assert r"$\mathbf{2.200 \pm 0.002}$" in text
    assert r"$3.900 \pm 0.002$" in text


def test_the_terminal_marks_the_lowest() -> None:
    shown = terminal_table(summary())
    assert shown.title == "bits per byte by sparsity, as pruned"
    assert "best (lowest) of column; chance 4.5" in str(shown.caption)
    bold = [
        [cell.plain for cell in column.cells if hasattr(cell, "plain") and "bold" in str(cell.style)]
        for column in shown.columns
    ]
    assert [cells[0][:5] for cells in bold if cells] == ["2.200", "2.220", "2.420"]


def test_who_holds_the_dense_baseline() -> None:
    entries = table(ROWS, field="bits_per_byte")
    found = {one.method: one for one in held(entries, "sgd", {}, metric=BITS)}
    assert {name: one.sparsity for name, one in found.items()} == {"sgd": 0.0, "l1": 0.5, "late": None}
    assert found["l1"].certain == 0.5
    assert found["l1"].dense_cost == pytest.approx(0.01)  # certain over the seeds
    assert found["late"].dense_cost == pytest.approx(0.2)
    assert next(iter(held(entries, "sgd", {}, metric=BITS))).method == "l1"
    said = verdict(Study(summary()))
    assert said.lead.startswith(
        "Within 0.05 bits of the dense baseline (sgd, 2.200 bits per byte): l1 to 50 %, sgd dense only"
    )
    assert "At 80 %, late keeps 2.420, sgd 3.900." in said.lead
    assert "late costs 0.200 bits" in said.lead


def test_the_headline_speaks_of_fewer_bits() -> None:
    text = headline(ROWS, "bits_per_byte", CHANCE)
    assert "late needs the fewest bits per byte at 80 % sparsity: 2.420 against 3.900 for sgd, -1.480 bits" in text
    assert "it costs: late 0.200 bits" in text
    worse = headline([*rows("sgd", 2.2, 2.3, 2.4), *rows("l1", 2.2, 2.35, 2.6)], "bits_per_byte", CHANCE)
    assert "no method is better than sgd at 80 % sparsity" in worse
    gone = headline([*rows("sgd", 2.2, 4.9, 5.0)], "bits_per_byte", CHANCE)
    assert "no method stays better than chance" in gone


def test_a_sparsity_is_borne_while_half_of_the_way_from_chance_is_kept() -> None:
    def entries(at_80: float) -> list[object]:
        return table([*rows("sgd", 2.5, 2.6, at_80)], field="bits_per_byte")  # type: ignore[return-value]

    assert operating_point(entries(3.49), CHANCE, BITS) == 0.8  # type: ignore[arg-type]
    assert operating_point(entries(3.51), CHANCE, BITS) == 0.5  # type: ignore[arg-type]


def test_settings_are_chosen_by_the_fewest_bits_and_not_by_luck() -> None:
    found = variants(Recipe(), ["l1"], [0], {"l1.strength": [1e-5, 1e-4, 1e-3]})
    measured = [rows("l1", 2.2, mean, 2.5, split="validation") for mean in (2.6, 2.3, None)]
    (choice,) = choose(list(zip(found, measured, strict=True)), "plain", BITS)
    assert choice.best.recipe.l1.strength == 1e-4
    assert pruning_score(measured[0], "dense", BITS) == pytest.approx(2.2)
    assert dict(choice.scores)[found[2].label] == float("inf")


def test_a_contrast_is_judged_in_bits_and_a_fall_is_a_gain() -> None:
    spread = [row.model_copy(update={"bits_per_byte": (row.bits_per_byte or 0) + 0.0004 * (row.method == "l1") * row.seed})
              for row in ROWS]  # fmt: skip
    named = [Contrast(own="l1", other="sgd", sparsity=at, recalibrated=False) for at in (0.0, 0.8)]
    dense, pruned = judge(spread, named, BITS)
    assert dense.difference == pytest.approx(0.0104)
    assert pruned.words.startswith("l1 - sgd at 80 %, as pruned: -1.300 bits (95 % interval -1.301 to -1.299")
    section = contrasts_section(Study(summary().model_copy(update={"contrasts": [dense, pruned]})))
    assert section is not None
    assert [row[4].mark for row in section.tables[0].rows] == ["harm", "gain"]
    assert section.tables[0].caption.startswith("Bits per byte in bits")


def test_the_network_to_ship() -> None:
    chosen = [*rows("sgd", 2.20, 2.24, 3.90), *rows("l1", 2.21, 2.22, 2.60)]
    assert best_network(summary(chosen)) == (
        "l1",
        1,
        0.5,
    )  # within 0.05 bits of 2.20; of its seeds the one with the fewest


def test_the_page_says_bits_and_its_differences_are_gains_when_negative() -> None:
    study = Study(summary())
    sections = {section.name: section for section in study_sections(study)}
    accuracy = sections["accuracy"]
    assert accuracy.title == "Bits per byte against sparsity"
    layout = accuracy.figures[0].layout
    assert (layout["yaxis"]["tickformat"], layout["yaxis"]["title"]["text"]) == (
        ".2f",
        "Bits per byte (lower is better)",
    )
    assert layout["yaxis"]["range"][1] > CHANCE
    to_baseline = next(one for one in accuracy.tables if one.name.startswith("baseline"))
    marks = {row[0].text: [cell.mark for cell in row[1:]] for row in to_baseline.rows}
    assert marks["late"] == ["harm", "harm", "gain"]
    best = next(one for one in accuracy.tables if one.name.startswith("absolute"))
    assert [[cell.best for cell in row[1:]] for row in best.rows] == [
        [True, False, False], [False, True, False], [False, False, True]
    ]  # fmt: skip
    head = sections["results"].tables[0].head
    assert {"mean, bits per byte", "bytes right, %", "perplexity", "to dense, bits"} <= set(head)
    cells = dict(zip(head, sections["results"].tables[0].rows[0], strict=True))
    assert (cells["perplexity"].text, cells["bytes right, %"].text) == ("4.59", "22.00")


def test_the_card_of_a_shared_run() -> None:
    shared = Shared(Recipe(), {"name": "byte_gpt"}, rows("sgd", 2.2, 2.3, 2.4), None, 0.0, "1", None)
    text = model_card(shared, BITS)
    assert "Bits per byte, lower is better, on the test split." in text
    assert "pipeline_tag: text-generation" in text

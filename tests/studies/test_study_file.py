"""A study written down: rows in order, each with a grid of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trimtab.runs.recipe import Recipe
from trimtab.studies.study_file import StudyFile, StudyRow, read_study, study_variants
from trimtab.studies.summary import Row
from trimtab.studies.weights.tuning import choose


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(text)
    return file


def measured(accuracy: float) -> Row:
    return Row(
        method="m", seed=0, sparsity=0.9, sparsity_total=0.9, recalibrated=False, accuracy=accuracy, loss=1.0,
        split="validation",
    )  # fmt: skip


def runs(study: StudyFile) -> list[tuple[str, int]]:
    return [(variant.label, variant.recipe.seed) for variant in study_variants(study, Recipe(), (7,))]


def test_rows_run_in_order_with_common_and_own_grids(tmp_path: Path) -> None:
    study = read_study(
        written(
            tmp_path,
            """
vary: {sgd.weight_decay: [1e-4, 1e-3]}
rows:
- {method: l1, vary: {l1.strength: [1e-5, 1e-4]}}
- {method: sgd, seeds: [0, 1]}
- {method: adamw}
- {method: var, settings: {sgd.weight_decay: 5e-4}}
- {method: sgd, seeds: [1, 2]}
""",
        )
    )
    assert runs(study) == [
        ("l1[sgd.weight_decay=0.0001,l1.strength=1e-05]", 7),
        ("l1[sgd.weight_decay=0.0001,l1.strength=0.0001]", 7),
        ("l1[sgd.weight_decay=0.001,l1.strength=1e-05]", 7),
        ("l1[sgd.weight_decay=0.001,l1.strength=0.0001]", 7),
        ("sgd[sgd.weight_decay=0.0001]", 0),
        ("sgd[sgd.weight_decay=0.001]", 0),
        ("sgd[sgd.weight_decay=0.0001]", 1),
        ("sgd[sgd.weight_decay=0.001]", 1),
        ("adamw", 7),
        ("var[sgd.weight_decay=0.0005]", 7),
        ("sgd[sgd.weight_decay=0.0001]", 2),  # seed 1 stood above
        ("sgd[sgd.weight_decay=0.001]", 2),
    ]
    first, *_ = study_variants(study, Recipe(), (7,))
    assert (first.recipe.l1.strength, first.recipe.sgd.weight_decay) == (1e-5, 1e-4)
    assert first.varied == ("sgd.weight_decay", "l1.strength")
    assert first.family == "l1"


def test_a_label_names_the_row_and_its_grid_stands_in_brackets() -> None:
    rows: list[dict[str, Any]] = [
        {"method": "var", "label": "VAR 0.5", "settings": {"var.strength": 1e-5}},
        {"method": "var", "label": "grid", "settings": {"epochs": 3}, "vary": {"var.strength": [1e-5, 1e-4]}},
    ]
    found = study_variants(StudyFile(rows=rows), Recipe(), (0,))
    assert [variant.label for variant in found] == ["VAR 0.5", "grid[var.strength=1e-05]", "grid[var.strength=0.0001]"]
    assert [variant.varied for variant in found] == [("var.strength",), *[("epochs", "var.strength")] * 2]
    assert [variant.recipe.epochs for variant in found] == [20, 3, 3]


def test_a_study_reads_back(tmp_path: Path) -> None:
    study = StudyFile(recipe="digits", seeds=(1,), rows=(StudyRow(method="l1", settings={"l1.strength": 1e-5}),))
    study.write(tmp_path / "again.yaml")
    assert read_study(tmp_path / "again.yaml") == study
    assert set(yaml.safe_load((tmp_path / "again.yaml").read_text())) == {"recipe", "seeds", "rows"}


def test_the_best_is_chosen_among_the_runs_of_a_row_name() -> None:
    rows = [
        {"method": "var", "label": "weak", "vary": {"var.strength": [1e-6, 1e-5]}},
        {"method": "var", "label": "strong", "vary": {"var.strength": [1e-3, 1e-2]}},
    ]
    found = study_variants(StudyFile(rows=rows), Recipe(), (0,))
    scores = [0.1, 0.2, 0.4, 0.3]
    choices = choose([(variant, [measured(score)]) for variant, score in zip(found, scores, strict=True)], "plain")
    assert [(choice.method, choice.best.recipe.var.strength) for choice in choices] == [
        ("weak", 1e-5),
        ("strong", 1e-3),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("rows: []", "rows: Tuple should have at least 1 item"),
        ("- sgd", "a study is a mapping with rows, got list"),
        ("rows: [{metod: sgd}]", "unknown field 'rows.0.metod'"),
        ("rows: [{method: sgd, label: [", "not readable as YAML"),
        ("rows: [{method: sgd}, {method: nothing}]", r"row 2 \(nothing\): .*unknown lever 'nothing'"),
        ("rows: [{method: sgd, settings: {l1.strength: 1e-4}}]", r"row 1 \(sgd\): l1.strength is not read by sgd"),
        ("rows: [{method: l1, settings: {l1.strenth: 1e-4}}]", "no recipe field 'l1.strenth'; did you mean"),
        ("rows: [{method: l1, vary: {l1.strength: []}}]", "vary l1.strength is empty"),
        ("rows: [{method: l1, vary: {l1.strength: [-1]}}]", "l1.strength must be finite and 0 or more, got -1"),
        ("rows: [{method: sgd, label: a}, {method: l1, label: a}]", r"row 2 \(l1\): another run is named 'a' with seed 0"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_study_is_one_line_that_names_file_and_row(tmp_path: Path, text: str, says: str) -> None:
    file = written(tmp_path, text)
    with pytest.raises(ValueError, match=says) as error:
        study_variants(read_study(file), Recipe(), (0,), str(file))
    assert str(error.value).startswith(str(file))

"""What was written before a recipe had `levers` stays readable: recipes, run folders, summaries, the committed evidence.

`old_form/` was written by the code of that time: `finished` and `interrupted` are a recipe of var+cram+ with two transforms and
a final clipping, trained to the end and stopped after the first of two epochs; `summary.json` is of a study.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from trimtab.cli import main
from trimtab.report import render
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.curvature.records import CurvatureSummary
from trimtab.studies.documents import Document
from trimtab.studies.precision.records import PrecisionStudy
from trimtab.studies.summary import Summary
from trimtab.studies.weights.headline import headline
from trimtab.tables.parts import read_table

OLD = Path(__file__).parent / "old_form"
EVIDENCE = Path(__file__).parents[2] / "docs" / "evidence"
KINDS: dict[str, type[Document]] = {
    "trimtab.summary/1": Summary, "trimtab.curvature/1": CurvatureSummary, "trimtab.precision/1": PrecisionStudy,
}  # fmt: skip
DOCUMENTS = [
    path for path in sorted(EVIDENCE.glob("*.json")) if "schema" in json.loads(path.read_text(encoding="utf-8"))
]


def test_a_recipe_of_before_means_the_same() -> None:
    text = (OLD / "finished" / "recipe.yaml").read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    assert "levers" not in given
    recipe = load_recipe(OLD / "finished")
    assert recipe.used == ("sgd", "var", "cram+", "centralize", "zscore", "clip_norm")
    assert recipe.section("clip_norm").model_dump()["max_norm"] == 1.0
    for name, settings in given.items():
        if isinstance(settings, dict) and name not in ("precision", "data", "model"):
            new = recipe.model_dump(mode="json")[name]
            assert {key: new[key] for key in settings} == settings, name
    assert load_recipe(OLD / "interrupted") == recipe
    assert Recipe.model_validate(yaml.safe_load(recipe.to_yaml())) == recipe


def test_a_finished_run_is_read_pruned_and_reported(tmp_path: Path) -> None:
    shutil.copytree(OLD / "finished", tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    assert folder.finished
    assert folder.info()["steps"] == 10
    assert [row["epoch"] for row in folder.metrics()] == [1, 2]
    assert read_table(folder.gradients_folder).num_rows == 10  # two layers of five steps: the weight, and all together
    assert main(["prune", str(folder.path), "--sparsities", "0.5", "--trust-code", "--json"]) == 0
    assert main(["report", str(folder.path), "--out", str(tmp_path / "report"), "--trust-code"]) == 0
    assert {row.method.partition("[")[0] for row in Summary.read(tmp_path / "report" / "summary.json").rows} == {
        "var+cram+"
    }


def test_an_interrupted_run_goes_on(tmp_path: Path) -> None:
    shutil.copytree(OLD / "interrupted", tmp_path / "run")
    folder = train(load_recipe(tmp_path / "run"), tmp_path / "run")
    expected = load_file(OLD / "finished" / "model.safetensors")
    for name, tensor in load_file(folder.model_file).items():  # bit for bit on the machine that wrote them
        torch.testing.assert_close(tensor, expected[name], rtol=1e-3, atol=1e-5)
    assert folder.metrics()[-1]["penalty"] == pytest.approx(
        RunFolder(OLD / "finished").metrics()[-1]["penalty"], rel=1e-3
    )


def test_a_summary_is_read_and_shown(tmp_path: Path) -> None:
    summary = Summary.read(OLD / "summary.json")
    assert [run.method for run in summary.runs] == ["sgd", "var+cram+"]
    assert headline(list(summary.rows), summary.metric, summary.chance) in summary.headline
    assert summary.headline in render(summary, tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
def test_the_committed_evidence_is_read(path: Path) -> None:
    written = json.loads(path.read_text(encoding="utf-8"))
    found = KINDS[written["schema"]].read(path)
    recipe = Recipe.model_validate(written["recipe"])
    assert "+".join(recipe.levers) == recipe.method == written["recipe"]["method"]
    assert len(found.model_dump(by_alias=True)["rows" if "rows" in written else "runs"]) > 0

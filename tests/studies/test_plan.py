"""A study whose runs are not all there says so: which, why, and before anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.runs.tiny import tiny_recipe
from trimtab.cli.study import write_report
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.comparison import run_folders
from trimtab.studies.plan import Plan, planned_runs, write_plan
from trimtab.studies.prune_run import prune_run
from trimtab.studies.summary import Summary
from trimtab.studies.variants import variants
from trimtab.studies.weights.assemble import assemble


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five runs planned: sgd 0 whole, sgd 1 trained but not pruned, var 0 failed, var 1 begun, sam 0 never started."""
    folder = tmp_path_factory.mktemp("study")
    wanted = variants(tiny_recipe(epochs=1), ["sgd", "var"], [0, 1]) + variants(tiny_recipe(epochs=1), ["sam"], [0])
    write_plan(wanted, folder)
    by_name = {(v.label, v.recipe.seed): v for v in wanted}
    for seed in (0, 1):
        variant = by_name["sgd", seed]
        run = train(variant.recipe, folder / "runs" / variant.folder)
        if seed == 0:
            prune_run(run)
    for seed in (0, 1):
        variant = by_name["var", seed]
        RunFolder(folder / "runs" / variant.folder).open(variant.recipe)
    (folder / "runs/var/seed0/error.txt").write_text("Traceback ...\nFloatingPointError: the loss is nan\n")
    return folder


def test_the_report_of_an_interrupted_study_names_every_missing_run(study: Path) -> None:
    summary = write_report(study, study)
    assert [(run.method, run.seed, run.why, run.folder) for run in summary.missing] == [
        ("var", 0, "failed", "runs/var/seed0"),
        ("sgd", 1, "not measured", "runs/sgd/seed1"),
        ("var", 1, "unfinished", "runs/var/seed1"),
        ("sam", 0, "not started", "runs/sam/seed0"),
    ]
    assert summary.missing[0].detail == "FloatingPointError: the loss is nan"
    assert summary.missing[2].detail == "0 of 1 epochs"
    says = "Incomplete, 4 of 5 runs are missing (1 failed, 1 not measured, 1 unfinished, 1 not started)"
    assert summary.headline.startswith(f"{says}. ")
    page = (study / "report.html").read_text()
    assert f"<strong>{says}.</strong>" in page
    assert page.index('role="alert"') < page.index('class="headline"')
    assert "<li>var, seed 0: failed (FloatingPointError: the loss is nan)</li>" in page
    assert "<li>sam, seed 0: not started</li>" in page
    assert Summary.read(study / "summary.json") == summary


def test_a_whole_study_has_no_such_words(study: Path) -> None:
    one = study / "runs/sgd/seed0"
    assert [run.label for run in planned_runs(one).values()] == ["sgd"]  # the plan of the study that holds it
    summary = assemble(run_folders(one), one, planned=planned_runs(one))
    assert summary.missing == []
    assert "Incomplete" not in summary.headline


def test_without_a_plan_what_was_begun_is_still_named(study: Path) -> None:
    summary = assemble(run_folders(study), study)
    assert [run.why for run in summary.missing] == ["not measured", "failed", "unfinished"]


def test_nothing_to_show_names_the_reasons(study: Path) -> None:
    with pytest.raises(ValueError, match=r"no finished and pruned run .*var, seed 0: failed .*var, seed 1: unfinished"):
        assemble(run_folders(study / "runs/var"), study)


def test_the_last_plan_counts_and_a_damaged_one_is_named(study: Path, tmp_path: Path) -> None:
    write_plan(variants(tiny_recipe(), ["sgd"], [0]), tmp_path)
    write_plan(variants(tiny_recipe(), ["var"], [3]), tmp_path)
    assert [(run.label, run.seed) for run in planned_runs(tmp_path).values()] == [("var", 3)]
    assert json.loads((tmp_path / "study.json").read_text())["schema"] == "trimtab.study/1"
    assert Plan.read(tmp_path / "study.json").runs[0].folder == "runs/var/seed3"
    (tmp_path / "study.json").write_text("{")
    with pytest.raises(ValueError, match=r"study\.json is no plan"):
        planned_runs(tmp_path)


def test_summaries_of_before_are_read(study: Path, tmp_path: Path) -> None:
    old = assemble(run_folders(study), study).model_dump(mode="json", by_alias=True)
    old.pop("missing")
    (tmp_path / "summary.json").write_text(json.dumps(old))
    assert Summary.read(tmp_path / "summary.json").missing == []

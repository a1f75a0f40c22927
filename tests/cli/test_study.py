"""Studies from a file, with records, as a user types them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trimtab.cli import main
from trimtab.runs.commented import commented
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.shipped import shipped_recipes
from trimtab.studies.study_file import read_study
from trimtab.studies.summary import Summary
from trimtab.studies.variants import default_run, default_study, variants

STUDY = """
recipe: digits
settings: {epochs: 1, data.limit_train: 320, pruning.sparsities: [0.5, 0.9], pruning.recalibrate_batches: 3}
rows:
- {method: l1, label: lasso, vary: {l1.strength: [1e-5, 1e-4]}}
- {method: sgd, vary: {sgd.lr: [0.05]}}
"""


@pytest.mark.usefixtures("here_and_now")
def test_tune_chooses_by_row_and_its_records_stand_for_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "grids.yaml"
    file.write_text(STUDY)
    words = ["tune", "--study", str(file), "--records", str(tmp_path / "records"), "--json", "--epochs", "2"]
    assert main([*words, "--out", str(tmp_path / "one")]) == 0
    first = json.loads(capsys.readouterr().out)
    assert set(first["scores"]) == {"lasso", "sgd"}
    chosen = read_study(tmp_path / "one/tuned-study.yaml")
    assert [(row.method, row.label) for row in chosen.rows] == [("l1", "lasso"), ("sgd", "sgd")]
    assert chosen.rows[1].settings == {"sgd.lr": 0.05}
    record = json.loads((tmp_path / "records/sgd_sgd.lr=0.05_/seed0.json").read_text())
    assert record["recipe"]["epochs"] == 2  # the flag wins over the file
    assert main([*words, "--out", str(tmp_path / "two")]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["scores"] == first["scores"]
    assert not (tmp_path / "two/runs").exists()
    # the records as a folder of their own
    assert (
        main(["report", str(tmp_path / "records"), "--split", "validation", "--out", str(tmp_path / "page"), "--json"])
        == 0
    )
    summary = Summary.read(tmp_path / "page/summary.json")
    assert {run.method for run in summary.runs} == {
        "lasso[l1.strength=1e-05]", "lasso[l1.strength=0.0001]", "sgd[sgd.lr=0.05]",
    }  # fmt: skip
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--study", "FILE", "--methods", "sgd"],
            "--methods and --study are both given; the rows of FILE say what is run",
        ),
        (["--study"], "--study needs a file"),
        (["--study", "FILE"], "FILE names no recipe; give one first: trimtab compare RECIPE --study FILE"),
        (["digits", "--study", "FILE.none"], "FILE.none does not exist"),
        (["digits", "--study", "FILE", "--threads", "0"], "threads must be"),
    ],
)
def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str) -> None:
    file = tmp_path / "study.yaml"
    file.write_text("rows: [{method: sgd}]\n")
    given = [word.replace("FILE", str(file)) for word in words]
    assert main(["compare", *given, "--out", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err.strip()
    assert says.replace("FILE", str(file)) in error
    assert "\n" not in error
    assert not (tmp_path / "out").exists()


def test_new_writes_a_commented_recipe_that_reads_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "photos.yaml"
    words = ["new", str(file), "own-images", "--data.root", "PHOTOS", "--method", "l1+cram+", "--l1.strength", "1e-4"]
    assert main([*words, "--quiet"]) == 0
    made = load_recipe(file)
    wanted = load_recipe("own-images").with_settings(
        {"method": "l1+cram+", "data.root": "PHOTOS", "l1.strength": 1e-4}
    )  # fmt: skip
    assert made == wanted
    text = file.read_text()
    assert "# Passes over the training images.\nepochs: 40\n" in text
    assert "autoscale" not in text
    before = file.read_bytes()
    assert main([*words[:2], "digits"]) == 2
    assert f"{file} is there already" in capsys.readouterr().err
    assert file.read_bytes() == before
    assert main(["new", "digits"]) == 2
    assert "the file comes first: trimtab new FILE.yaml [RECIPE] [options]" in capsys.readouterr().err


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_reads_back_from_its_commented_form(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    (tmp_path / "one.yaml").write_text(commented(recipe))
    assert load_recipe(tmp_path / "one.yaml") == recipe


def test_default_folders_never_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = Recipe(method="var"), Recipe(method="var", epochs=3)
    plain = default_run(one)
    assert plain == Path("runs/digits/var/seed0")
    assert default_run(Recipe(transforms=("centralize",))) == Path("runs/digits/sgd_transforms=centralize_/seed0")
    RunFolder(plain).open(one)
    RunFolder(plain).model_file.touch()
    assert default_run(one) == plain  # the same command goes on with its run
    other = default_run(two)
    assert other.parent == plain.parent
    assert other.name.startswith("seed0-")
    assert other == default_run(two) != default_run(Recipe(method="var", epochs=4))
    study = Path("runs/digits")
    RunFolder(study / "runs/sgd/seed0").open(Recipe())
    RunFolder(study / "runs/sgd/seed0").model_file.touch()
    assert default_study(study, Recipe(), variants(Recipe(), ["sgd", "var"], [0, 1])) == study
    marked = default_study(study, two, variants(two, ["sgd", "var"], [0, 1]))
    assert marked.name.startswith("digits-")
    assert marked == default_study(study, two, variants(two, ["sgd"], [0]))

"""`trimtab precision` as a user types it, on a tiny recipe."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from tests.here_and_now import in_this_process
from tests.report.precision_factory import precision_study
from trimtab.cli import main
from trimtab.cli.precision_command import PrecisionArguments, study_of, verdict_table
from trimtab.runs.recipe import Recipe
from trimtab.studies.precision import logistic as logistic_study
from trimtab.studies.precision.records import PrecisionStudy

TINY = ["--epochs", "2", "--data.limit-train", "320", "--precision.meter-every", "2"]
STUDY = ["digits", *TINY, "--formats", "e4m3,e3m2", "--compensate", "--seeds", "0", "1"]


@pytest.fixture(scope="module", autouse=True)
def one_process_and_short_descents() -> Iterator[None]:
    """`descend` with fewer steps, and no process started for a run."""
    with in_this_process() as patch:
        defaults = dict(logistic_study.descend.__kwdefaults__ or {})
        patch.setattr(logistic_study.descend, "__kwdefaults__", defaults | {"steps": 40, "repetitions": 4})
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two formats, with and without compensation, and two seeds."""
    out = tmp_path_factory.mktemp("precision")
    assert main(["precision", *STUDY, "--out", str(out), "--quiet"]) == 0
    return out


def read(folder: Path) -> PrecisionStudy:
    return PrecisionStudy.model_validate_json((folder / "precision.json").read_bytes())


def test_every_variant_is_trained_metered_and_shown(folder: Path) -> None:
    study = read(folder)
    assert study.labels == ["full", "e4m3", "e4m3, compensated", "e3m2", "e3m2, compensated"]
    assert [(run.seed, run.status) for run in study.of("e3m2")] == [(0, "finished"), (1, "finished")]
    for run in study.runs:
        assert run.test_accuracy is not None
        assert (run.shrinkage is None) == (run.label == "full")
        assert len(run.train_loss) == 2
    coarse, fine = study.of("e3m2")[0].shrinkage, study.of("e4m3")[0].shrinkage
    assert coarse is not None
    assert fine is not None
    assert coarse.steps == [0, 2, 4, 6, 8]
    assert len(coarse.layers) > 3
    assert coarse.q_min is not None
    assert fine.q_min is not None
    assert coarse.q_min < fine.q_min
    assert max(value or 0 for value in coarse.dead) > max(value or 0 for value in fine.dead)
    assert [one.format for one in study.logistic] == ["full", "e4m3", "e3m2"]
    page = (folder / "precision.html").read_text(encoding="utf-8")
    assert study.headline in page
    for part in (
        "figure-precision-accuracy",
        "figure-precision-layers-0",
        "figure-logistic-0",
        "figure-precision-dead",
    ):
        assert part in page


def test_the_format_changes_the_training_and_the_seed_too(folder: Path) -> None:
    study = read(folder)
    losses = {(run.label, run.seed): run.train_loss[-1] for run in study.runs}
    assert len(set(losses.values())) == len(losses)


def test_a_second_call_trains_nothing_and_prints_the_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/*/run.json")}
    logistic = (folder / "logistic.json").stat().st_mtime_ns
    assert len(before) == 10
    assert main(["precision", *STUDY, "--out", str(folder)]) == 0
    assert {file: file.stat().st_mtime_ns for file in folder.glob("runs/*/*/run.json")} == before
    assert (folder / "logistic.json").stat().st_mtime_ns == logistic
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "format",
        "e4m3, compensated",
        "± 95 % t interval over seeds",
        "precision.html",
        "Full precision reaches",
    ):
        assert part in printed


def test_json_is_the_file_and_one_more_format_joins_the_study(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["precision", "digits", *TINY, "--formats", "e5m2", "--seeds", "0", "--out", str(folder),
                 "--no-logistic", "--json"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads((folder / "precision.json").read_text())
    assert found["schema"] == "trimtab.precision/1"
    assert {run["label"] for run in found["runs"]} >= {"full", "e5m2", "e3m2, compensated"}


def test_a_run_folder_stands_for_its_recipe(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = folder / "runs" / "full" / "seed0"
    assert main(["precision", str(run), "--formats", "e4m3", "--seeds", "0", "--no-logistic", "--out", str(tmp_path),
                 "--json"]) == 0  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert found["recipe"]["data"]["limit_train"] == 320
    there = {run.label: run for run in read(folder).runs if run.seed == 0}
    for run in found["runs"]:
        assert run["train_loss"] == there[run["label"]].train_loss


@pytest.mark.filterwarnings("ignore:the gradients hold inf or NaN:UserWarning")
def test_a_run_that_diverges_is_a_row_and_not_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["precision", "digits", *TINY, "--formats", "e2m1", "--steps", "1,1e30", "--seeds", "0", "--no-logistic",
                 "--out", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "diverged" in captured.out
    found = {run.label: run.status for run in read(tmp_path).runs}
    assert found["full"] == "finished"
    assert "diverged" in found.values()
    assert main(arguments) == 0  # and is not tried again
    assert {run.label: run.status for run in read(tmp_path).runs} == found


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--formats", "e4m4x"], "unknown number format 'e4m4x'; did you mean e4m3"),
        (["--formats", "int1"], "2 to 16 bits"),
        (["--formats", "e-4m3"], "unknown number format 'e-4m3'"),
        (["--formats", ","], "formats is empty"),
        (["--formats", "e4m3,e4m3"], "formats holds a value twice"),
        (["--rounding", "odd"], "rounding is one of nearest, ties_away, toward_zero, up, down, stochastic, got 'odd'"),
        (["--scaling", "row"], "scaling is one of none, tensor, channel, block, mx, got 'row'"),
        (["--tensors", "gradient"], "got 'gradient'"),
        (["--tensors", "weights", "--compensate"], "compensation is about rounded gradients"),
        (["--steps", "fast"], "--steps takes numbers such as 1,2,4, got 'fast'"),
        (["--steps", "0"], "a step factor must be finite and above 0, got 0"),
        (["--seeds", "1", "1"], "seeds must be one or more, each once"),
        (["--jobs", "0"], "--jobs must be 1 or more, got 0"),
        (["--precision.gradients", "e4m3"], "the recipe names a number format itself"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["precision", "digits", *arguments, "--out", str(out)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not out.exists()


def test_a_folder_of_another_study_or_other_tensors_is_refused(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "precision.json").read_bytes()
    other = ["precision", "digits", *TINY, "--seeds", "0", "--no-logistic", "--out", str(folder), "--quiet"]
    assert main([*other, "--formats", "e5m2", "--tensors", "weights"]) == 2
    assert "rounds other tensors than weights" in " ".join(capsys.readouterr().err.split())
    assert (folder / "precision.json").read_bytes() == before


def test_a_damaged_logistic_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logistic.json").write_text("[{}]")
    assert (
        main(["precision", "digits", *TINY, "--formats", "e4m3", "--seeds", "0", "--out", str(tmp_path), "--quiet"])
        == 2
    )
    assert "logistic.json is damaged" in " ".join(capsys.readouterr().err.split())


def test_lists_take_commas_and_spaces() -> None:
    given = PrecisionArguments(
        "digits", Recipe(), formats=("e4m3,e5m2", "int4"), steps=("1,2.5",), scaling=("none, mx",)
    )
    study = study_of(given)
    assert study.formats == ("e4m3", "e5m2", "int4")
    assert study.steps == (1.0, 2.5)
    assert study.scaling == ("none", "mx")


def test_the_terminal_names_the_worst_layers_of_each_format() -> None:
    written = io.StringIO()
    Console(file=written, width=80).print(verdict_table(precision_study()))
    lines = written.getvalue().splitlines()
    (worst,) = (line for line in lines if line.split()[:1] == ["e2m1"])
    assert "first" in worst
    assert " %" in worst
    assert max(map(len, lines)) <= 80


def test_recipes_of_operands_stand_among_the_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "digits",
        *TINY,
        "--formats",
        "mxfp4-all-layers,e4m3",
        "--seeds",
        "0",
        "--no-logistic",
        "--out",
        str(tmp_path),
    ]
    assert main(["precision", *given]) == 0
    study = read(tmp_path)
    assert study.labels == ["full", "mxfp4-all-layers", "e4m3"]
    (run,) = study.of("mxfp4-all-layers")
    assert run.early_gap is not None
    assert run.shrinkage is not None
    kinds = {one.kind for one in run.errors}
    assert {"fprop", "dgrad", "wgrad", "fprop activation", "wgrad gradient"} <= kinds
    other = study.of("e4m3")[0]
    assert {one.kind for one in other.errors} == {"gradients"}
    assert (other.early_gap, study.of("full")[0].errors) == (None, [])
    assert other.early_error is not None
    assert "Errors in three parts, and the loss they predict" in (tmp_path / "precision.html").read_text(
        encoding="utf-8"
    )
    assert "mxfp4-all-layers" in capsys.readouterr().out

"""The command line as a user types it: every command once, end to end, on a tiny study."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.here_and_now import in_this_process
from trimtab.cli import COMMANDS, main
from trimtab.deploy import load_sparse
from trimtab.runs.recipe import load_recipe
from trimtab.studies.summary import Summary

SMALL = [
    "--epochs", "2", "--data.limit-train", "320", "--pruning.sparsities", "0.5", "0.9", "--pruning.recalibrate-batches", "3",
]  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study of two methods and two seeds."""
    out = tmp_path_factory.mktemp("study")
    with in_this_process():
        code = main(["compare", "digits", *SMALL, "--methods", "sgd", "var", "--seeds", "0", "1", "--out", str(out),
                     "--cost-steps", "2", "--track", "gradients,weights,updates", "--track-every", "2", "--quiet"])  # fmt: skip
    assert code == 0
    return out


def test_compare_leaves_summary_report_and_a_smaller_file(study: Path) -> None:
    summary = Summary.read(study / "summary.json")
    assert {run.method for run in summary.runs} == {"sgd", "var"}
    assert sorted({round(row.sparsity, 3) for row in summary.rows if row.method == "var"}) == [0.0, 0.5, 0.9]
    assert {(row.score, row.scope) for row in summary.rows if row.method == "sgd"} == {
        ("magnitude", "global"), ("random", "global"), ("magnitude", "layer"),
    }  # fmt: skip
    assert {(row.score, row.scope) for row in summary.rows if row.method == "var"} == {("magnitude", "global")}
    assert {cost.method for cost in summary.costs} == {"sgd", "var"}
    assert summary.headline in (study / "report.html").read_text()
    file = next(study.glob("*.safetensors"))
    assert load_sparse(file)


def test_file_bytes_in_the_summary_are_those_of_a_written_file(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(study / "runs/sgd/seed0"), "--sparsity", "0.9", "--no-recalibrate", "--json"]) == 0
    file = Path(json.loads(capsys.readouterr().out)["files"]["sparse"])
    rows = Summary.read(study / "summary.json").rows
    stored = next(
        row.file_bytes for row in rows if (row.method, row.seed, row.score, row.scope) == ("sgd", 0, "magnitude", "global")
        and row.sparsity > 0.8
    )  # fmt: skip
    assert stored is not None
    assert abs(file.stat().st_size - stored) < 300  # the metadata texts differ


def test_tracked_runs_have_dynamics_in_summary_report_and_their_own_page(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = Summary.read(study / "summary.json")
    assert [(run.method, run.seed) for run in summary.dynamics] == [("sgd", 0), ("sgd", 1), ("var", 0), ("var", 1)]
    assert [bool(run.layers[0].log10_std) for run in summary.dynamics] == [True, False, True, False]
    steps = summary.runs[0].steps
    assert summary.dynamics[0].steps == list(range(0, steps, 2))
    assert len(summary.dynamics[0].update_ratio) == len(summary.dynamics[0].steps)
    assert "s0-figure-dynamics-layers-1" in (study / "report.html").read_text()
    assert main(["gradients", str(study / "runs/sgd"), str(study / "runs/var/seed0"), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "sgd, seed 1: standard deviation of each layer's gradient" in " ".join(printed.split())
    assert "In these 3 runs" in printed
    assert "s0-figure-dynamics-std" in (tmp_path / "gradients.html").read_text()
    assert main(["gradients", str(study / "runs/sgd/seed0"), "--out", str(tmp_path), "--json"]) == 0
    found, own = json.loads(capsys.readouterr().out), summary.dynamics[0]
    assert [(run["method"], run["fall"]) for run in found["runs"]] == [("sgd", own.facts.fall)]
    assert [(row["layer"], row["first"]) for row in found["layers"]] == [(one.name, one.first) for one in own.layers]
    assert [(row["step"], row["std"]) for row in found["steps"]] == list(zip(own.steps, own.std, strict=True))


@pytest.mark.usefixtures("here_and_now")
def test_runs_are_compared_by_their_gradients_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "compare",
        "digits",
        *SMALL,
        "--epochs",
        "1",
        "--methods",
        "sgd",
        "autoscale",
        "--seeds",
        "0",
        "--no-prune",
    ]
    assert main([*words, "--out", str(tmp_path / "study")]) == 2
    assert "--track gradients" in capsys.readouterr().err
    words += ["--track", "gradients", "--track-every", "2"]
    assert main([*words, "--records", str(tmp_path / "kept"), "--out", str(tmp_path / "study")]) == 2
    assert not (tmp_path / "study").exists()
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "study"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(run["method"], run["seed"]) for run in found["runs"]] == [("autoscale", 0), ("sgd", 0)]
    assert Path(found["page"]) == tmp_path / "study" / "gradients.html"
    assert not list(tmp_path.rglob("pruning-*.json"))


def test_an_untracked_run_is_said_to_be_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(tmp_path / "r")
    words = ["train", "digits", *SMALL, "--epochs", "1", "--data.limit-train", "130", "--out", run, "--quiet"]
    assert main(words) == 0
    assert main(["gradients", run]) == 2
    assert "no tracked run among" in capsys.readouterr().err
    assert main([*words, "--track", "gradients"]) == 0  # the finished run is kept
    output = capsys.readouterr()
    assert "was finished without tracking" in output.err.replace("\n", " ")
    assert "trimtab gradients" not in output.out


@pytest.mark.usefixtures("here_and_now")
def test_a_second_compare_trains_nothing_again(study: Path) -> None:
    models = {file: file.stat().st_mtime_ns for file in study.rglob("model.safetensors")}
    assert main(["compare", "digits", *SMALL, "--methods", "sgd", "var", "--seeds", "0", "1", "--out", str(study),
                 "--cost-steps", "2", "--quiet"]) == 0  # fmt: skip
    assert models == {file: file.stat().st_mtime_ns for file in study.rglob("model.safetensors")}


def test_prune_report_and_list(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(study / "runs/var/seed1")
    assert main(["prune", run, "--sparsities", "0.7", "--split", "validation", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {row["split"] for row in rows} == {"validation"}
    assert main(["report", str(study), "--out", str(tmp_path), "--name", "again <b>", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "again <b>"
    assert "again <b>" not in (tmp_path / "report.html").read_text().split("</title>")[0]
    assert main(["list", "levers", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["levers"]["cram+"].endswith("(2207.14200)")
    assert main(["list"]) == 0
    assert "cifar10-resnet20" in capsys.readouterr().out


@pytest.mark.usefixtures("here_and_now")
def test_tune_chooses_on_validation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "digits", *SMALL, "--vary", "var.strength=1e-5,1e-3", "--out", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    best = max(found["scores"]["var"], key=lambda label: found["scores"]["var"][label])
    assert best == f"var[var.strength={found['settings']['var.strength']}]"
    assert not list(tmp_path.rglob("pruning-test.json"))
    assert load_recipe(tmp_path / "tuned.yaml").var.strength == found["settings"]["var.strength"]


def test_train_quiet_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", *SMALL, "--method", "var+sam", "--out", str(tmp_path / "r"), "--json"]) == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["status"] == "finished"
    assert output.err == ""
    words = ["train", "digits", *SMALL, "--method", "var+sam", "--out", str(tmp_path / "r")]
    assert main([*words, "--quiet"]) == 0
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "")
    assert main(words) == 0
    assert "next: trimtab prune" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "did you mean train?"),
        (["train", "nowhere"], "no recipe 'nowhere'"),
        (["train", "digits", "--model.name", "resnet21"], "resnet20"),
        (["train", "digits", "--data.name", "digit"], "digits"),
        (["train", "cifar10-resnet20", "--data.root", "/nonexistent"], "/nonexistent"),
        (["train", "digits", "--method", "vart"], "did you mean var"),
        (["compare", "digits", "--methods", "sgd", "nothing"], "unknown lever 'nothing'"),
        (["compare", "digits", "--vary", "var.strength"], "FIELD=VALUE"),
        (["prune", "/nonexistent"], "not a run folder"),
        (["export", "/nonexistent"], "not a run folder"),
        (["report", "/nonexistent"], "no folder"),
        (["gradients", "/nonexistent"], "no folder"),
        (["gradients"], "name at least one tracked run"),
        (["train", "digits", "--track", "gradients,weight"], "'weight'; allowed are gradients, weights, updates"),
        (["train", "digits", "--transforms", "zscor"], "unknown gradient transform 'zscor'"),
        (["compare", "digits", "--vary", "autoscale.scale=ema"], "none of the methods sgd, var reads it"),
    ],
)
def test_bad_input_is_one_clear_line_and_code_2(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("words", [["train", "digits", "--var.strenght", "1"], ["train", "digits", "--epochs", "many"]])
def test_usage_errors_exit_with_2(words: list[str]) -> None:
    assert main(words) == 2


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["train", "digits", "--var.strength=-1"],
         "train: var.strength must be finite and 0 or more, got -1.0"),
        (["train", "digits", "--data.batch-size", "0"], "train: data.batch_size: Input should be greater than 0 (got 0)"),
        (["train", "digits", "--accumulate", "0"], "train: accumulate: Input should be greater than 0 (got 0)"),
        (["train", "digits", "--pruning.sparsities", "2"],
         "train: pruning.sparsities.0: Input should be less than 1 (got 2.0)"),
        (["compare", "digits", "--sgd.momentum", "2"], "compare: sgd.momentum must lie in [0, 1), got 2.0"),
        (["compare", "digits", "--vary", "var.strength=-1"],
         "compare: settings: var.strength must be finite and 0 or more, got -1.0"),
    ],
)  # fmt: skip
def test_a_nested_option_out_of_range_is_one_line(
    words: list[str], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert capsys.readouterr().err == f"trimtab {line}\n"


def test_other_usage_errors_are_still_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "digits", "--var.strenght", "1"]) == 2
    assert "--var.strenght" in capsys.readouterr().err


def test_prune_by_wanda_with_the_runs_own_training_data(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = str(study / "runs/var/seed1")
    words = ["prune", run, "--sparsities", "0.6", "--score", "wanda", "--split", "validation", "--json"]
    for scope in ("row", "global"):
        assert main([*words, "--scope", scope]) == 0
        rows = [row for row in json.loads(capsys.readouterr().out)["rows"] if row["score"] == "wanda"]
        assert {row["scope"] for row in rows} == {scope}
        assert {round(row["sparsity"], 1) for row in rows} == {0.0, 0.6}


def test_prune_with_other_settings_leaves_what_reports_read(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = study / "runs/sgd/seed0"
    before = (run / "pruning-test.json").read_bytes()
    assert main(["prune", str(run), "--sparsities", "0.6"]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert "pruning-test-other.json" in said
    assert "reports do not read this file: give --replace" in said
    assert f"trimtab prune {run} --sparsities 0.6 --replace" in said
    assert f"trimtab report {study}" in said
    assert "('" not in said
    assert (run / "pruning-test.json").read_bytes() == before
    assert main(["prune", "--quiet", str(run)]) == 2
    assert "RUN comes first" in capsys.readouterr().err


def test_the_recipe_must_come_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--method", "var", "cifar10-resnet20", "--out", str(tmp_path / "r")]) == 2
    assert "RECIPE comes first" in capsys.readouterr().err
    assert not (tmp_path / "r").exists()


def test_runs_that_differ_in_more_than_the_method_are_not_put_into_one_table(
    study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["digits", *SMALL, "--epochs", "1", "--method", "l1", "--out", str(tmp_path / "r"), "--quiet"]
    assert main(["train", *words]) == 0
    assert main(["prune", str(tmp_path / "r"), "--quiet"]) == 0
    assert main(["report", str(study), str(tmp_path / "r"), "--out", str(tmp_path / "out")]) == 2
    assert "cannot stand in one table (epochs: 2 and 1)" in capsys.readouterr().err.replace("\n", " ")


def test_a_failed_start_does_not_block_the_corrected_command(tmp_path: Path) -> None:
    words = ["train", "digits", *SMALL, "--out", str(tmp_path / "r"), "--quiet"]
    assert main([*words, "--model.name", "vgg16"]) == 2
    assert not (tmp_path / "r").exists()
    assert main(words) == 0


@pytest.mark.parametrize("sparsity", ["-0.5", "nan", "1"])
def test_export_refuses_a_sparsity_out_of_range(
    study: Path, sparsity: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(study / "runs/sgd/seed0"), f"--sparsity={sparsity}", "--out", str(tmp_path / "x")]) == 2
    assert "sparsity" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_of_every_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = main([command, "--help"])
    except SystemExit as stop:
        code = stop.code
    assert code == 0
    assert f"trimtab {command}" in capsys.readouterr().out


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in COMMANDS)
    assert main([]) == 2
    assert main(["--version"]) == 0


@pytest.mark.parametrize(("command", "extra"), [("demo", "medclm"), ("build", "medclm"), ("train", "training")])
def test_a_missing_extra_is_named_before_anything_is_made(
    command: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trimtab.cli.medclm.find_spec", lambda _: None)
    assert main(["medclm", command]) == 2
    said = capsys.readouterr().err
    assert f"pip install 'trimtab[{extra}]'" in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())

"""`--dry-run` counts what would run and writes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from trimtab.cli import main
from trimtab.runs.recipe import load_recipe
from trimtab.studies import estimate as module
from trimtab.studies.estimate import Estimated
from trimtab.studies.variants import Variant

SMALL = ["--epochs", "2", "--data.limit-train", "160", "--data.batch-size", "32", "--pruning.sparsities", "0.5", "0.9"]


def test_it_counts_runs_and_steps_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["compare", "digits", *SMALL, "--methods", "sgd", "cram+", "--seeds", "0", "1", "2", "--dry-run"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["label"], one["runs"], one["finished"]) for one in found["runs"]] == [("sgd", 3, 0), ("cram+", 3, 0)]
    assert {one["steps"] for one in found["runs"]} == {2 * (160 // 32)}
    parts = [3 * (one["train_seconds"] + one["prune_seconds"]) for one in found["runs"]]
    assert found["seconds"] == pytest.approx(sum(parts))
    assert found["runs"][0]["prune_seconds"] > 0
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "nothing was written" in printed
    assert max(map(len, printed.splitlines())) <= 80
    assert not list(tmp_path.iterdir())


def test_what_is_finished_costs_nothing() -> None:
    assert Estimated("sgd", 3, 3, 10, 0.1, 1.0, 1.0, 4).left_seconds == 0
    assert Estimated("sgd", 3, 1, 10, 0.1, 1.0, 0.5, 4).left_seconds == 3.0


def test_images_of_the_pruning_by_hand() -> None:
    class Run:
        data = type("Data", (), {"validation": range(10), "test": range(100)})()
        model = nn.Sequential(nn.BatchNorm1d(2))

    recipe = load_recipe("digits").with_settings(
        {
            "pruning.sparsities": (0.5, 0.9),
            "pruning.recalibrate_batches": 2,
            "pruning.controls": False,
            "data.batch_size": 8,
        }
    )
    assert module._pruning_images(recipe, Run(), ("test",)) == 3 * (2 * 100 + 16)
    assert module._pruning_images(recipe, Run(), ("validation", "test")) == 3 * (2 * 110 + 2 * 16)
    controls = recipe.with_settings({"pruning.controls": True})
    assert module._pruning_images(controls, Run(), ("test",)) == 9 * (2 * 100 + 16)


@pytest.mark.usefixtures("here_and_now")
def test_runs_with_a_record_are_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["tune", "digits", *SMALL, "--epochs", "1", "--methods", "l1", "--vary", "l1.strength=1e-5,1e-4"]
    assert main([*words, "--seeds", "0", "--records", "kept", "--out", "first", "--quiet"]) == 0
    capsys.readouterr()
    assert main([*words, "--seeds", "0", "1", "--records", "kept", "--out", "second", "--dry-run", "--json"]) == 0
    assert [(one["runs"], one["finished"]) for one in json.loads(capsys.readouterr().out)["runs"]] == [(2, 1), (2, 1)]


def test_fine_tuning_costs_its_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "_pruning_images", lambda *_: 0)
    recipe = load_recipe("digits").with_settings(
        {"data.limit_train": 160, "data.batch_size": 32, "pruning.sparsities": (0.5, 0.9), "pruning.finetune": 4}
    )
    (one,) = module.estimate([Variant("sgd", recipe)], [tmp_path], ("validation", "test"))
    assert one.prune_seconds == pytest.approx(4 * 3 * 5 * one.step_seconds)  # epochs, dense and two sparsities, steps


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dry") / "run"
    assert (
        main(["train", "digits", *SMALL, "--epochs", "1", "--model.name", "digits_cnn", "--out", str(out), "--quiet"])
        == 0
    )
    return out


@pytest.mark.parametrize(
    ("words", "times", "writes"),
    [
        (["prune", "RUN"], [3], "pruning-test.json"),
        (["prune", "RUN", "--sparsities", "0.7", "--finetune", "2"], [2], "pruning-test-other.json"),
        # 1 + 3 probes of each of 4 weights; before and after, the least taken away, 8 halvings; before and after
        (["compress", "RUN"], [2 * (1 + 4), 2 + 1 + 6 + 4 + 3 + 3 * 7, 2], "export/digits-sgd-compact.safetensors"),
        (["compress", "RUN", "--budget", "9kB"], [2 * (1 + 4) + 1, 2 + 1 + 3, 2], "export/digits-sgd-compact.safetensors"),
        (["compress", "RUN", "--bits", "4"], [2, 2], "export/digits-sgd-compact.safetensors"),
        (["curvature", "RUN", "--sparsities", "0,0.5", "--examples", "64"], [2 * (60 + 15 + 2 * 16 + 2 * 3)], "curvature"),
        (["curvature", "RUN", "--sparsities", "0", "--landscape", "--examples", "64"], [113, 17**2], "curvature"),
    ],
)  # fmt: skip
def test_what_a_finished_run_would_be_measured_for(
    words: list[str], times: list[int], writes: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    words = [str(run) if word == "RUN" else word for word in words]
    assert main([*words, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [part["times"] for part in found["parts"]] == times
    assert all(part["seconds"] > 0 for part in found["parts"])
    assert found["seconds"] == pytest.approx(sum(part["times"] * part["seconds"] for part in found["parts"]))
    assert Path(found["writes"]) == run / writes
    assert main([*words, "--dry-run"]) == 0
    assert "nothing was written" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_the_demo_says_what_it_would_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trimtab.cli.demo_command.METHODS", ("sgd",))
    assert main(["demo", "--out", str(tmp_path / "demo"), "--dry-run", "--json"]) == 0
    assert [(one["label"], one["runs"]) for one in json.loads(capsys.readouterr().out)["runs"]] == [("sgd", 3)]
    assert not list(tmp_path.iterdir())

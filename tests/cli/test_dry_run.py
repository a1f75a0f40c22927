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

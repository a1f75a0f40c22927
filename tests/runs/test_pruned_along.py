"""Runs that prune along training: their length, exact zeros, resume in the middle, no loss when pruned again, refusals."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.runs.test_training import same, weights
from tests.runs.tiny import tiny_recipe
from trimtab.parameters import PRUNABLE, select
from trimtab.pruning import one_shot
from trimtab.runs.loading import load_data, trained_model
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.prune_run import prune_run

PHASES = {"warm_up": 0.1, "phase": 0.2, "last_dense": 0.1, "last_sparse": 0.2}
SETTINGS: dict[str, dict[str, Any]] = {
    "gradual": {"gradual__final": 0.9, "gradual__every": 2},
    "progressive": {"progressive__final": 0.9, "progressive__end": 1.0},
    "ac_dc": {f"ac_dc__{name}": value for name, value in PHASES.items()},
    "sam+safe": {"sam__rho": 0.1, "safe__every": 8, "safe__strength": 0.1},
    "gradual+sam": {"gradual__reversible": True, "gradual__scope": "global"},
}


def recipe_of(method: str, **settings: Any) -> Recipe:
    """Three epochs of 20 steps."""
    return tiny_recipe(method=method, data__batch_size=16, **SETTINGS[method], **settings)


@pytest.mark.parametrize("method", SETTINGS)
def test_a_run_ends_as_sparse_as_asked_and_loses_nothing_when_pruned(tmp_path: Path, method: str) -> None:
    recipe = recipe_of(method)
    folder = train(recipe, tmp_path / "run")
    model = trained_model(folder, load_data(recipe))
    chosen: list[Tensor] = [entry.parameter for entry in select(model, PRUNABLE).chosen]
    zeros, total = sum(int((weight == 0).sum()) for weight in chosen), sum(weight.numel() for weight in chosen)
    layered = method == "gradual"
    assert zeros == (sum(int(0.9 * w.numel() + 0.5) for w in chosen) if layered else int(0.9 * total + 0.5))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    one_shot(model, 0.9, scope="layer" if layered else "global")
    assert same(before, model.state_dict())
    name = "safe" if "safe" in method else method.partition("+")[0]
    assert folder.info()["levers"][name]["sparsity"] == pytest.approx(zeros / total, abs=1e-4)
    assert folder.metrics()[-1][f"{name}.sparsity"] == pytest.approx(zeros / total, abs=1e-4)
    if not layered:
        rows = [row for row in prune_run(folder, split="validation").rows if not row.recalibrated]
        assert len({row.accuracy for row in rows if row.sparsity <= 0.9 + 1e-3}) == 1


@pytest.mark.parametrize("method", SETTINGS)
def test_interrupted_in_the_middle_and_resumed_equals_uninterrupted(tmp_path: Path, method: str) -> None:
    recipe = recipe_of(method)
    whole = train(recipe, tmp_path / "whole")
    stopped: list[int] = []

    def interrupt(progress: Progress) -> None:
        if not stopped and progress.epoch == 1:
            stopped.append(progress.step)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts", interrupt)
    assert same(weights(whole), weights(train(recipe, tmp_path / "parts")))
    assert whole.metrics() == RunFolder(tmp_path / "parts").metrics()


def test_accumulation_and_mixed_precision(tmp_path: Path) -> None:
    for name, settings in {"accumulated": {"accumulate": 2}, "half": {"precision__autocast": "fp16"}}.items():
        folder = train(recipe_of("ac_dc", epochs=2, **settings), tmp_path / name)
        assert folder.info()["levers"]["ac_dc"]["sparsity"] == pytest.approx(0.9, abs=1e-3)
        assert all(bool(tensor.isfinite().all()) for tensor in weights(folder).values())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"method": "gradual", "gradual__final": 1.0}, r"gradual\.final must lie in \(0, 1\), got 1\.0"),
        ({"method": "ac_dc", "ac_dc__sparsity": 0.0}, r"ac_dc\.sparsity must lie in \(0, 1\), got 0\.0"),
        ({"method": "safe", "safe__sparsity": 1.5}, r"safe\.sparsity must lie in \(0, 1\), got 1\.5"),
        ({"method": "gradual", "gradual__begin": 0.9}, r"gradual\.begin must be below end"),
        ({"method": "progressive", "progressive__power": 3.0}, r"no recipe field 'progressive\.power'"),
    ],
)
def test_a_wrong_setting_is_refused_when_the_recipe_is_read(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tiny_recipe(**settings)


def test_a_run_too_short_for_its_phases_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    recipe = tiny_recipe(method="ac_dc", epochs=1)  # five steps; read without the data it seemed to fit
    with pytest.raises(ValueError, match=r"ac_dc\.total_steps must give each of the 15 phases a step, got 5"):
        train(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_lever_of_a_run_knows_its_length(tmp_path: Path) -> None:
    recipe = recipe_of("gradual")
    train(recipe, tmp_path / "run")
    state = RunFolder(tmp_path / "run").load_checkpoint()
    assert state is not None
    saved = state["levers"]["levers"][0]["state"]
    assert saved["steps"] == saved["settings"]["total_steps"] == 3 * 20
    assert all(mask.dtype == torch.bool for mask in saved["gone"].values())

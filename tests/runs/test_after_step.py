"""Levers that act after the step, in runs: composed with any pair, averages put in and recalibrated at the end, resumed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.runs.test_training import same, weights
from tests.runs.tiny import tiny_recipe
from trimtab.levers import members
from trimtab.pruning import recalibrate
from trimtab.runs import training_run
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, build_model, load_data, trained_model
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe
from trimtab.runs.steering import Steering
from trimtab.runs.training import train


def averaged(**settings: object) -> Recipe:
    return tiny_recipe(**{"levers": ("l1", "cram+", "ema"), "epochs": 2, **settings})


@pytest.mark.parametrize(
    "levers", [("l1", "cram+", "ema"), ("concentrate", "sam", "mean_weights"), ("proximal_l1", "var")], ids=str
)
def test_killed_and_resumed_equals_uninterrupted(levers: tuple[str, ...], tmp_path: Path) -> None:
    recipe = tiny_recipe(levers=levers, epochs=2)
    whole = train(recipe, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed", interrupt)
    assert same(weights(whole), weights(train(recipe, tmp_path / "resumed")))


def test_the_network_of_a_run_is_the_average_with_statistics_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[Steering] = []
    own = training_run.steer
    monkeypatch.setattr(training_run, "steer", lambda *args, **more: kept.append(own(*args, **more)) or kept[-1])
    recipe = averaged()
    folder = train(recipe, tmp_path / "run")
    (lever,) = [one for one in members(kept[0].handle.levers) if type(one).__name__ == "EMA"]
    state = lever.state_dict()
    assert state["averaged"] == 10
    assert folder.info()["levers"]["ema"] == {"averaged_steps": 10}

    data = load_data(recipe)
    found, expected = trained_model(folder, data), build_model(recipe, data)
    expected.load_state_dict(found.state_dict())
    with torch.no_grad():
        for name, parameter in expected.named_parameters():
            parameter.copy_(state["averages"][name])
    recalibrate(expected, batches_of(recipe, data, "train").sample(3, recipe.seed))
    for (name, one), other in zip(found.state_dict().items(), expected.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, msg=name)
    quality = evaluate(found, batches_of(recipe, data, "validation"), data.num_classes)
    assert folder.info()["validation_accuracy"] == quality.accuracy


def test_until_the_end_a_run_with_an_average_is_the_run_without(tmp_path: Path) -> None:
    with_average = train(averaged(), tmp_path / "a").metrics()
    without = train(averaged(levers=("l1", "cram+")), tmp_path / "b").metrics()
    assert [row["train_loss"] for row in with_average] == [row["train_loss"] for row in without]
    assert with_average[0]["validation_loss"] == without[0]["validation_loss"]
    assert with_average[-1]["validation_loss"] != without[-1]["validation_loss"]

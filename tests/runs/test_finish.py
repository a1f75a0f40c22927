"""What levers do after a run's last step, and what they tell its record: once, whenever the run was killed."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runs.test_training import same, weights
from tests.runs.tiny import tiny_recipe
from trimtab.levers import attach
from trimtab.parameters import Entry
from trimtab.pruning import recalibrate
from trimtab.runs import saving, training, training_run
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.position import Progress
from trimtab.runs.steering import Steering
from trimtab.runs.training import train


class Shifts:
    """A lever that changes the convolutions at the end, so that BatchNorm statistics no longer fit, and counts."""

    def __init__(self, recalibrates: bool) -> None:
        self.steps = self.ends = 0
        self.needs_recalibration = recalibrates

    def before_step(self, parameters: Sequence[Entry]) -> None:
        pass

    def end_step(self) -> None:
        self.steps += 1

    def finish(self, parameters: Sequence[Entry]) -> None:
        self.ends += 1
        for entry in parameters:
            if entry.parameter.ndim == 4:
                entry.parameter.mul_(2.0).add_(0.01)

    def describe(self) -> dict[str, float]:
        return {"steps": self.steps, "ends": self.ends, "nothing": float("nan")}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps, "ends": self.ends}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps, self.ends = state["steps"], state["ends"]


@pytest.fixture(autouse=True, params=[True, False], ids=["recalibrated", "as it is"])
def _with_shifts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    own = training_run.steer

    def steered(*arguments: Any, **settings: Any) -> Steering:
        steering = own(*arguments, **settings)
        steering.handle.remove()
        lever = Shifts(request.param)
        handle = attach(steering.optimizer, lever, model=arguments[1])
        return replace(steering, handle=handle, parts={**steering.parts, "shifts": lever})

    monkeypatch.setattr(training_run, "steer", steered)


def test_a_run_killed_anywhere_near_its_end_equals_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(epochs=2)
    whole = train(recipe, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.step == progress.steps:
            os.kill(os.getpid(), signal.SIGINT)

    def broken(*arguments: Any) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(KeyboardInterrupt):  # after the last step, before the levers' end
        train(recipe, tmp_path / "step", interrupt)
    with monkeypatch.context() as patched:  # after the end, before the save
        patched.setattr(training, "finish", broken)
        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe, tmp_path / "end")
    with monkeypatch.context() as patched:  # after the save, before the network is written
        patched.setattr(saving, "save_network", broken)
        with pytest.raises(RuntimeError, match="power cut"):
            train(recipe, tmp_path / "save")
    for place in ("step", "end", "save"):
        resumed = train(recipe, tmp_path / place)
        assert same(weights(whole), weights(resumed)), place
        assert whole.metrics() == resumed.metrics(), place
        assert resumed.info()["levers"] == whole.info()["levers"]


def test_statistics_are_those_of_the_changed_weights_and_the_record_has_the_numbers(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    recipe = tiny_recipe(epochs=1, data__limit_train=130)
    run = train(recipe, tmp_path / "run")
    assert run.info()["levers"] == {"shifts": {"steps": 2, "ends": 1, "nothing": None}}
    (row,) = run.metrics()
    assert (row["shifts.steps"], row["shifts.ends"], row["shifts.nothing"]) == (2, 1, None)
    data = load_data(recipe)
    found, expected = trained_model(run, data), trained_model(run, data)
    recalibrate(expected, batches_of(recipe, data, "train").sample(3, recipe.seed))
    buffers = zip(found.buffers(), expected.buffers(), strict=True)
    fits = all(torch.allclose(one.float(), other.float(), rtol=1e-5, atol=1e-6) for one, other in buffers)
    assert fits == ("recalibrated" in request.node.name)

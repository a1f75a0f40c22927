"""Sinks get the finite numbers of trackers and runs, through the calls their packages document."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab
from trimtab.observe import GradientTracker, open_sink
from trimtab.observe.sinks import SINKS, check_sink
from trimtab.runs import sinking as sinking_module
from trimtab.runs.recipe import load_recipe
from trimtab.runs.training import train


def follow_two_steps(sink: Any) -> None:
    net = torch.nn.Linear(2, 1, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracker = GradientTracker()
    end = sink.follow(tracker)
    trimtab.attach(optimizer, tracker, model=net)
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.tensor([[1.0, 3.0]])).sum().backward()
        optimizer.step()
    tracker.flush()
    end()
    sink.log({"loss": 0.5, "nothing": None, "gone": float("nan"), "word": "x", "yes": True}, 7)
    sink.finish()


class Run:
    """What wandb.init and trackio.init return, as far as it is documented."""

    def __init__(self, **settings: Any) -> None:
        self.settings, self.rows, self.finished = settings, [], False

    def log(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_runs_with_log_and_finish(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Run] = []
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(name=name)  # type: ignore[assignment]
    module.init = lambda **settings: made.append(Run(**settings)) or made[-1]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    follow_two_steps(open_sink(name, tmp_path, project="digits", run="sgd seed 0", config={"seed": 0}))
    assert made[0].settings["project"] == "digits"
    assert made[0].settings["config"] == {"seed": 0}
    assert [step for step, _ in made[0].rows] == [0, 1, 7]
    assert made[0].rows[0][1]["gradients/std/weight"] == 1.0
    assert made[0].rows[-1][1] == {"loss": 0.5}
    assert made[0].finished


def test_wandb_never_gets_a_step_that_lies_behind() -> None:
    run = Run()
    sink = trimtab.observe.sinks.WandB(run)
    sink.log({"loss": 1.0}, 20)
    sink.log({"gradients/std/w": 1.0}, 10)
    assert [step for step, _ in run.rows] == [20, 20]


def test_json_lines_of_a_training_run(tmp_path: Path) -> None:
    recipe = load_recipe("digits").with_settings(
        {"epochs": 1, "data.limit_train": 130, "track": ("gradients",), "track_every": 1, "sink": ("jsonl",)}
    )
    run = train(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/sink.jsonl").read_text().splitlines()]
    names = {name for row in rows for name in row}
    assert {"train/loss", "epoch/train_loss", "epoch/validation_accuracy", "gradients/std/(global)"} <= names
    told = next(row["epoch/train_loss"] for row in rows if "epoch/train_loss" in row)
    assert told == run.metrics()[-1]["train_loss"]


def test_tensorboard_gets_it_all(tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    follow_two_steps(open_sink("tensorboard", tmp_path))
    found = events.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(one.step, one.value) for one in found.Scalars("gradients/std/weight")] == [(0, 1.0), (1, 1.0)]
    assert [(one.step, one.value) for one in found.Scalars("loss")] == [(7, 0.5)]
    assert "gone" not in found.Tags()["scalars"]


def test_mlflow_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    sink = open_sink("mlflow", tmp_path, project="digits", run="sgd seed 0", config={"seed": 0})
    follow_two_steps(sink)
    run = sink.client.get_run(sink.run_id)
    assert run.data.metrics["loss"] == 0.5
    assert run.data.metrics["gradients/std/_global_"] == 1.0
    assert run.data.params == {"seed": "0"}
    assert run.info.status == "FINISHED"
    assert [one.step for one in sink.client.get_metric_history(sink.run_id, "gradients/std/weight")] == [0, 1]


def test_a_sink_that_is_not_there_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match="did you mean wandb"):
        check_sink("wandbb")
    with pytest.raises(ValueError, match="allowed are jsonl"):
        load_recipe("digits").with_settings({"sink": ("nothing",)})
    monkeypatch.setitem(SINKS, "wandb", (SINKS["wandb"][0], "no_such_package_here"))
    with pytest.raises(ImportError, match=r"trimtab\[wandb\]"):
        train(load_recipe("digits").with_settings({"sink": ("wandb",)}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_tells_the_settings_of_the_levers_that_act(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[dict[str, Any]] = []

    def opened(*_: object, config: dict[str, Any], **__: object) -> Any:
        given.append(config)
        return open_sink("jsonl", tmp_path / "log", project="p", run="r", config=config)

    monkeypatch.setattr(sinking_module, "open_sink", opened)
    small = {"epochs": 1, "data.limit_train": 64, "sink": ("jsonl",), "l1@head.strength": 1e-3, "cram.rho": 0.2}
    train(load_recipe("digits").with_settings({"method": "l1@head+cram+", **small}), tmp_path / "run")
    (config,) = given
    assert (config["cram.rho"], config["l1@head.strength"]) == (0.2, 1e-3)
    assert "sgd.lr" in config
    assert "var.strength" not in config


@pytest.mark.parametrize(
    ("error", "status"), [(None, "FINISHED"), (KeyboardInterrupt(), "KILLED"), (ValueError("lost"), "FAILED")]
)
def test_how_a_run_ended_is_told(
    error: BaseException | None, status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To MLflow by its status, to wandb by its exit code, to a sink of one's own by `finish`."""
    told: list[Any] = []

    class Own(trimtab.observe.sinks.Sink):
        def write(self, values: dict[str, float], step: int) -> None:
            if error is not None:
                raise error

        def finish(self) -> None:
            told.append("finish")

    client = types.SimpleNamespace(set_terminated=lambda *given: told.append(given))
    wandb = types.SimpleNamespace(finish=lambda **given: told.append(given))
    sinks = {
        "jsonl": Own(), "mlflow": trimtab.observe.sinks.MLflow(client, "7"), "wandb": trimtab.observe.sinks.WandB(wandb),
    }  # fmt: skip
    monkeypatch.setattr(sinking_module, "open_sink", lambda name, *_, **__: sinks[name])
    monkeypatch.setattr(trimtab.observe.sinks.MLflow, "write", lambda *_: None)
    monkeypatch.setattr(trimtab.observe.sinks.WandB, "write", lambda *_: None)
    recipe = load_recipe("digits").with_settings({"epochs": 1, "data.limit_train": 64})
    run = types.SimpleNamespace(
        recipe=recipe.model_copy(update={"sink": ("mlflow", "wandb", "jsonl")}),
        devices=types.SimpleNamespace(rank=0),
        folder=types.SimpleNamespace(path=tmp_path),
        watching=types.SimpleNamespace(tracker=None),
        steering=types.SimpleNamespace(guards=()),
    )

    def whole() -> None:
        with sinking_module.sinking(run) as sinking:  # type: ignore[arg-type]
            sinking.epoch({"loss": 1.0}, 1)

    if error is None:
        whole()
    else:
        with pytest.raises(type(error)):
            whole()
    assert told == ["finish", {} if error is None else {"exit_code": 1}, ("7", status)]

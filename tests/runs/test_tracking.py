"""Tracking in a training run: it changes nothing, survives interruptions, may be switched on and off."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import load_file

from tests.runs.tiny import tiny_recipe
from trimtab.cli.progress import gradient_lines
from trimtab.observe import read_table
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.tracked import Latest
from trimtab.runs.training import train
from trimtab.studies.gradients.dynamics import run_dynamics

TRACK = ("gradients", "weights", "updates")


def same_networks(first: RunFolder, second: RunFolder) -> bool:
    one, other = load_file(first.model_file), load_file(second.model_file)
    return all(torch.equal(one[name], other[name]) for name in one)


def tables(folder: RunFolder) -> tuple[pa.Table, pa.Table]:
    return read_table(folder.gradients_folder), read_table(folder.signals_folder)


def recipe(**settings: object) -> Recipe:
    base: dict[str, object] = {"epochs": 2, "track": TRACK, "track_every": 2, "transforms": "autoscale"}
    return tiny_recipe(**{**base, **settings})


def interrupted(of: Recipe, folder: Path, kill: bool) -> None:
    """Stop at the first report with a checkpoint, or die at the second one, after the checkpoint of the first epoch."""
    reports: list[int] = []

    def stop(progress: Progress) -> None:
        reports.append(progress.step)
        if kill and progress.epoch == 1:
            raise RuntimeError("power cut")
        if not kill and len(reports) == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(RuntimeError if kill else KeyboardInterrupt):
        train(of, folder, stop)


@pytest.mark.parametrize(("method", "kill"), [("sgd", False), ("var+sam", True)])
def test_interrupted_and_resumed_leaves_the_same_network_and_rows(tmp_path: Path, method: str, kill: bool) -> None:
    wanted = recipe(method=method, data__limit_train=200, data__batch_size=8)  # 22 steps an epoch, a report at 20
    whole = train(wanted, tmp_path / "whole")
    interrupted(wanted, tmp_path / "parts", kill)
    parts = train(wanted, tmp_path / "parts")
    assert same_networks(whole, parts)
    for one, other in zip(tables(whole), tables(parts), strict=True):
        assert one.num_rows > 0
        assert one.to_pydict() == other.to_pydict()
    assert sorted(set(tables(whole)[0]["step"].to_pylist())) == list(range(0, whole.info()["steps"], 2))
    assert set(tables(whole)[1]["name"].to_pylist()) == {"alpha", "sigma"}


def test_tracking_changes_no_network_and_can_be_switched_on_and_off(tmp_path: Path) -> None:
    plain, watched = recipe(track="none"), recipe()
    without = train(plain, tmp_path / "without")
    assert not without.gradients_folder.exists()
    interrupted(plain, tmp_path / "on", kill=False)
    on = train(watched, tmp_path / "on")
    interrupted(watched, tmp_path / "off", kill=False)
    off = train(plain, tmp_path / "off")
    assert same_networks(without, on)
    assert same_networks(without, off)
    half = without.info()["steps"] // 2
    assert min(tables(on)[0]["step"].to_pylist()) >= half  # counted from the run's beginning
    assert max(tables(off)[0]["step"].to_pylist()) >= half - 2
    assert RunFolder(tmp_path / "on").finished


def test_the_display_gets_the_latest_gradients(tmp_path: Path) -> None:
    seen: list[Latest] = []
    folder = train(recipe(epochs=1), tmp_path, lambda p: seen.append(p.latest) if p.latest else None)
    dynamics = run_dynamics(folder, "sgd")
    assert dynamics is not None
    assert seen[-1].step == dynamics.steps[-1]
    assert seen[-1].std == pytest.approx(dynamics.std[-1], rel=1e-4)
    assert seen[-1].update_ratio == pytest.approx(dynamics.update_ratio[-1], rel=1e-4)
    assert seen[-1].signals["alpha"] == pytest.approx(dynamics.signals["alpha"][-1], rel=1e-4)
    assert seen[-1].largest is not None
    assert seen[-1].smallest is not None
    assert seen[-1].largest[1] > seen[-1].smallest[1] > 0
    assert seen[-1].largest[0] in {layer.name for layer in dynamics.layers}
    text = gradient_lines(seen[-1]).plain
    assert f"gradients at step {seen[-1].step}" in text
    assert "alpha" in text
    assert text.count("\n") == 3


def test_the_raw_gradient_is_tracked_and_the_clipped_one_signalled(tmp_path: Path) -> None:
    settings = {"epochs": 1, "data__limit_train": 130, "track_every": 1, "transforms": "none"}
    free = train(recipe(**settings), tmp_path / "free")
    clipped = train(recipe(clip_norm=1e-3, **settings), tmp_path / "clipped")
    first = [read_table(folder.gradients_folder).slice(0, 1).to_pylist()[0] for folder in (free, clipped)]
    assert first[0] == first[1]  # the first step's gradient, before it was clipped
    signals = {row["name"]: row["value"] for row in tables(clipped)[1].to_pylist() if row["step"] == 0}
    assert signals["factor"] == pytest.approx(1e-3 / signals["norm"], rel=1e-3)

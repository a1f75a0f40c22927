"""Curvature tracked in a training run: right, exact after interruptions, and without a trace in the network."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from tests.runs.tiny import tiny_recipe
from trimtab.cli import main
from trimtab.datasets import Batches
from trimtab.observe.curvature import Hessian, Objective, top_eigenvalues
from trimtab.runs.curvature_tracking import RHO
from trimtab.runs.loading import load_data, trained_model
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.curvature.track import moving_average, run_track


def recipe(**settings: object) -> Recipe:
    base: dict[str, object] = {
        "epochs": 2, "track": "curvature", "track_curvature_batch": 48, "data__limit_train": 200, "data__batch_size": 8,
    }  # fmt: skip
    return tiny_recipe(**{**base, **settings})


def same_networks(first: RunFolder, second: RunFolder) -> bool:
    one, other = load_file(first.model_file), load_file(second.model_file)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(recipe(method="var+sam"), tmp_path_factory.mktemp("tracked"))


def test_the_network_is_bit_equal_to_one_that_was_not_tracked(tracked: RunFolder, tmp_path: Path) -> None:
    plain = train(recipe(method="var+sam", track="none"), tmp_path)
    assert same_networks(plain, tracked)
    assert run_track(plain, "var+sam") is None
    keys = {"top_eigenvalue", "top_eigenvalue_residual", "sharpness", "curvature_batch"}
    stripped = [{name: value for name, value in row.items() if name not in keys} for row in tracked.metrics()]
    assert stripped == plain.metrics()


def test_interrupted_and_resumed_leaves_the_same_rows(tracked: RunFolder, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe(method="var+sam"), tmp_path, stop)
    assert len(RunFolder(tmp_path).metrics()) == 1
    resumed = train(recipe(method="var+sam"), tmp_path)
    assert resumed.metrics() == tracked.metrics()
    assert same_networks(resumed, tracked)


def test_the_last_row_is_the_finished_networks_curvature(tracked: RunFolder) -> None:
    own = tracked.recipe
    data = load_data(own)
    images, targets = next(Batches(data.train, data, 48, seed=0).epoch(0))
    objective = Objective(trained_model(tracked, data), cross_entropy, (images, targets), dtype=torch.float64)
    value = top_eigenvalues(Hessian(objective), tolerance=1e-6).values[0]
    track = run_track(tracked, "var+sam")
    assert track is not None
    assert track.epochs == [1, 2]
    assert track.batch == 48
    assert track.eigenvalues[-1] == pytest.approx(value, rel=0.01)
    assert 0 < track.residuals[-1] <= 0.01 * track.eigenvalues[-1]
    gradient = objective.gradient()[1]
    moved = objective.at(objective.flat(objective.weights) + RHO * gradient / gradient.norm())
    assert track.sharpness[-1] == pytest.approx(objective.loss(moved) - objective.loss(), rel=1e-3)


def test_every_second_epoch_and_always_the_last(tmp_path: Path) -> None:
    folder = train(recipe(epochs=3, track_curvature_every=2, track_curvature_batch=16), tmp_path)
    track = run_track(folder, "sgd")
    assert track is not None
    assert track.epochs == [2, 3]


def test_beside_gradients_and_in_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--track",
        "gradients,curvature",
        "--epochs",
        "1",
        "--data.limit-train",
        "130",
        "--track-curvature-batch",
        "16",
    ]
    assert main(["train", "digits", *given, "--out", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    track = run_track(RunFolder(tmp_path), "sgd")
    assert track is not None
    assert f"curvature on 16 images: largest eigenvalue {track.eigenvalues[0]:.3g} after epoch 1" in text
    assert RunFolder(tmp_path).gradients_folder.is_dir()


def test_moving_average() -> None:
    assert moving_average([4.0, 0.0, 0.0], decay=0.5) == [4.0, 2.0, 1.0]
    assert moving_average([3.0] * 5) == pytest.approx([3.0] * 5)
    assert moving_average([]) == []

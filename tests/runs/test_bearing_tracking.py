"""What a network bears, tracked while it trains: right, bounded in cost, and without a trace in the network."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.runs.test_text_run import tiny as tiny_text
from tests.runs.tiny import tiny_recipe
from trimtab.cli import main
from trimtab.datasets.seeds import generator
from trimtab.parameters import PRUNABLE, select
from trimtab.pruning import one_shot, recalibrate
from trimtab.runs.bearing import SHARE, plan
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.bearing import run_bearing

LOOKED = {
    "bearing_images", "bearing_dense", "bearing_sparsity_0.5", "bearing_sparsity_0.8", "bearing_sparsity_0.9", "bearing_bits_4",
    "critical_learning_rate", "critical_learning_rate_open",
}  # fmt: skip


def recipe(**settings: object) -> Recipe:
    base: dict[str, object] = {
        "epochs": 2, "track": "bearing", "track_bearing_every": 1, "track_bearing_images": 30, "data__limit_train": 200,
        "data__batch_size": 8,
    }  # fmt: skip
    return tiny_recipe(**{**base, **settings})


def same(first: RunFolder, second: RunFolder) -> bool:
    one, other = load_file(first.model_file), load_file(second.model_file)
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(recipe(method="var+sam"), tmp_path_factory.mktemp("tracked"))


def test_the_run_is_bit_equal_to_one_that_was_not_tracked(tracked: RunFolder, tmp_path: Path) -> None:
    plain = train(recipe(method="var+sam", track="none"), tmp_path)
    assert same(plain, tracked)
    assert run_bearing(plain, "var+sam") is None
    assert {name for row in tracked.metrics() for name in row} - {
        name for row in plain.metrics() for name in row
    } == LOOKED
    assert [
        {name: value for name, value in row.items() if name not in LOOKED} for row in tracked.metrics()
    ] == plain.metrics()


def test_so_is_a_run_with_dropout_and_a_text(tmp_path: Path) -> None:
    network = {"model__name": "tests.runs.test_bearing_tracking:dropping", "model__arguments": {}}
    looked = train(recipe(epochs=1, **network), tmp_path / "looked")
    assert same(looked, train(recipe(epochs=1, track="none", **network), tmp_path / "plain"))
    text = tiny_text(track=("bearing",), epochs=2, method="l1+cram+")
    seen = train(text, tmp_path / "text")
    assert same(seen, train(text.with_settings({"track": ()}), tmp_path / "plain-text"))
    last = seen.metrics()[-1]
    assert last["bearing_sparsity_0.9"] > last["bearing_dense"]  # bits per byte: worse is more
    assert last["bearing_dense"] == pytest.approx(last["validation_bits_per_byte"], abs=0.2)


def dropping(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """A network that draws random numbers in every step."""
    size = in_channels * image_size * image_size
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, num_classes)
    )


def test_stopped_and_resumed_leaves_the_same_rows(tracked: RunFolder, tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.epoch == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe(method="var+sam"), tmp_path, stop)
    resumed = train(recipe(method="var+sam"), tmp_path)
    assert resumed.metrics() == tracked.metrics()
    assert same(resumed, tracked)


def test_the_last_row_is_the_finished_network_pruned_and_rounded(tracked: RunFolder) -> None:
    own = tracked.recipe
    data = load_data(own)
    chosen = torch.randperm(len(data.validation), generator=generator(0, "bearing"))[:30].sort().values
    images = (data.validation.images[chosen].float() / 255 - data.mean[0]) / data.std[0]
    targets = data.validation.targets[chosen]
    calibration = list(
        batches_of(own, data, "train").sample(3, 0)
    )  # of 30 images in batches of 8 no more than the recipe's 3

    def accuracy(model: nn.Module) -> float:
        recalibrate(model, calibration)
        with torch.no_grad():
            return (model.eval()(images).argmax(1) == targets).double().mean().item()

    row = tracked.metrics()[-1]
    assert row["bearing_images"] == 30
    assert row["bearing_dense"] == pytest.approx(accuracy(trained_model(tracked, data)))
    pruned = trained_model(tracked, data)
    one_shot(pruned, 0.8)
    assert row["bearing_sparsity_0.8"] == pytest.approx(accuracy(pruned))
    rounded = trained_model(tracked, data)
    with torch.no_grad():
        for entry in select(rounded, PRUNABLE).chosen:
            weight = entry.parameter
            scale = weight.flatten(1).abs().amax(1).view(-1, *[1] * (weight.ndim - 1)) / 7
            weight.copy_((weight / scale).round().clamp(-7, 7) * scale)
    assert row["bearing_bits_4"] == pytest.approx(accuracy(rounded))


def test_the_critical_learning_rate_tells_a_careful_step_from_a_wild_one(tmp_path: Path) -> None:
    own = recipe(epochs=1, sgd__momentum=0.0, sgd__lr=1e-3, sgd__weight_decay=0.0)
    run = train(own, tmp_path)
    row = run.metrics()[-1]
    assert row["critical_learning_rate"] > row["lr"]
    assert row["critical_learning_rate_open"] in (0, 1)
    wild = train(own.with_settings({"sgd.lr": 30.0}), tmp_path / "wild").metrics()[-1]
    assert wild["critical_learning_rate"] < 30.0


def test_looks_are_spread_so_that_the_cost_stays_at_three_percent() -> None:
    for epochs in (1, 7, 30, 200):
        for looked in (10, 900, 5_000, 200_000):
            found = plan(epochs, 10_000, looked, None)
            assert found.cost <= SHARE or found.looks == 1
            assert found.cost == pytest.approx(found.looks * looked / (3 * 10_000 * epochs))
            closer = plan(epochs, 10_000, looked, found.every - 1) if found.every > 1 else None
            assert closer is None or closer.cost > SHARE
    assert plan(10, 100, 1, 4).looks == 3  # after epochs 2, 6 and 10


def test_the_default_is_told_in_run_json_and_the_last_epoch_is_always_looked_at(tmp_path: Path) -> None:
    run = train(recipe(epochs=3, track_bearing_every=None), tmp_path / "few")
    assert run.info()["bearing"]["looks"] == 1  # on 200 images one look costs more than 3 %
    assert [row["epoch"] for row in run.metrics() if "bearing_dense" in row] == [3]
    every = train(recipe(epochs=3, track_bearing_every=2), tmp_path / "two")
    track = run_bearing(every, "sgd")
    assert track is not None
    assert track.epochs == [1, 3]
    assert track.cost == every.info()["bearing"]["cost"]
    assert track.learning_rates == [row["lr"] for row in every.metrics() if row["epoch"] in (1, 3)]


def test_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--track", "bearing", "--epochs", "1", "--data.limit-train", "130", "--track-bearing-images", "20"]
    assert main(["train", "digits", *words, "--out", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "bears on 20 validation examples (accuracy): dense " in text
    assert "; 1 look, " in text


def test_a_network_without_weights_to_prune_is_refused(tmp_path: Path) -> None:
    network = {"model__name": "tests.runs.test_bearing_tracking:without_weights", "model__arguments": {}}
    with pytest.raises(ValueError, match="bearing prunes the network, and this one has no weight to prune"):
        train(recipe(**network), tmp_path / "none")
    assert not (tmp_path / "none" / "run.json").exists()


class Bias(nn.Module):
    """Adds a number to each class."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same for every image."""
        return self.bias.expand(len(x), -1)


def without_weights(num_classes: int) -> nn.Module:
    """Nothing but biases."""
    return Bias(num_classes)

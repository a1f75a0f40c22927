"""Groups of parameters with rates of their own; the network that starts from training images, resumed exactly."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from tests.runs.tiny import tiny_recipe
from trimtab.models.cifar_fast import whitening_filters
from trimtab.runs.groups import grouped, scale_rates
from trimtab.runs.loading import build_model, load_data, trained_model
from trimtab.runs.parallel import launch
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.runs.run_folder import RunFolder, training_identity
from trimtab.runs.sections import Group
from trimtab.runs.training import train
from trimtab.runs.training_run import TrainingRun

BIASES = {"include": "*.bias", "lr_factor": 4, "decay_factor": 0}
WHITENING = {"include": ["whiten.bias"], "lr_factor": 2, "decay_factor": 0, "epochs": 1}


def fast_recipe(**settings: object) -> Recipe:
    """The converging network at its smallest, on digits of 16 x 16, three epochs of five steps."""
    base: dict[str, object] = {
        "data.image_size": 16,
        "data.augment": "alternating",
        "model.name": "cifar10_fast",
        "model.arguments": {"width": 2},
        "schedule.name": "linear",
        "groups": {"whitening": WHITENING, "biases": BIASES},
    }
    return tiny_recipe(**{**base, **settings})


def test_first_group_that_matches_takes_a_parameter_and_factors_multiply() -> None:
    network = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2))
    network[1].weight.requires_grad_(requires_grad=False)
    groups = {
        "first": Group(include=("0.*",), exclude=("*.weight",), lr_factor=3),
        "biases": Group(include=("*bias",), decay_factor=0),
    }
    optimizer = torch.optim.SGD(grouped(network, groups), lr=0.5, weight_decay=0.1)
    scale_rates(optimizer, groups)
    held = [(g["group"], [id(p) for p in g["params"]], g["lr"], g["weight_decay"]) for g in optimizer.param_groups]
    assert held == [
        ("", [id(network[0].weight), id(network[2].weight)], 0.5, 0.1),
        ("first", [id(network[0].bias)], 1.5, 0.1),
        ("biases", [id(network[2].bias)], 0.5, 0.0),
    ]
    assert grouped(network, {}) == [p for p in network.parameters() if p.requires_grad]


def test_rates_follow_the_schedule_and_a_group_ends_after_its_epochs(tmp_path: Path) -> None:
    recipe = fast_recipe(sgd__lr=0.2, sgd__weight_decay=0.01)
    run = TrainingRun(recipe, RunFolder(tmp_path), launch(recipe))
    bias = run.model.get_parameter("whiten.bias")
    for step, factors in ((0, (1.0, 1.0)), (3, (0.8, 0.4)), (5, (10 / 15, 0.0)), (14, (1 / 15, 0.0))):
        assert run.stepper.set_learning_rate(step) == pytest.approx(0.2 * factors[0])
        rates = {group["group"]: group["lr"] for group in run.steering.base.param_groups}
        assert rates == pytest.approx({"": 0.2 * factors[0], "whitening": 0.4 * factors[1], "biases": 0.8 * factors[0]})
        run.stepper.loss([next(run.train_batches.epoch(0))])
        assert (bias.grad is not None) == (step < 5)
        assert bias.requires_grad
    decays = [group["weight_decay"] for group in run.steering.base.param_groups]
    assert decays == [0.01, 0.0, 0.0]


def test_the_bias_of_the_whitening_moves_in_its_epochs_alone_and_the_filters_never(tmp_path: Path) -> None:
    recipe = fast_recipe(epochs=2, schedule__name="constant")
    start = build_model(recipe, load_data(recipe)).state_dict()
    folder = train(recipe, tmp_path / "one")  # the bias is trained for one epoch
    twice = train(recipe.with_settings({"groups.whitening.epochs": 2}), tmp_path / "two")
    short = train(recipe.with_settings({"epochs": 1}), tmp_path / "short")
    found, other, first = (load_file(each.model_file) for each in (folder, twice, short))
    assert torch.equal(found["whiten.weight"], start["whiten.weight"].contiguous())
    assert not torch.equal(found["whiten.bias"], start["whiten.bias"])
    assert torch.equal(found["whiten.bias"], first["whiten.bias"])
    assert not torch.equal(found["whiten.bias"], other["whiten.bias"])
    assert not torch.equal(found["head.weight"], first["head.weight"])


def test_whitening_is_that_of_the_runs_training_images(tmp_path: Path) -> None:
    recipe = fast_recipe()
    data = load_data(recipe)
    network = build_model(recipe, data)
    scaled = (data.train.images.double() / 255 - data.mean[0]) / data.std[0]
    filters = network.get_parameter("whiten.weight").contiguous()
    torch.testing.assert_close(filters.abs(), whitening_filters(scaled).float().abs(), rtol=1e-3, atol=1e-4)
    again = build_model(recipe, data)
    assert all(
        torch.equal(a, b) for a, b in zip(network.state_dict().values(), again.state_dict().values(), strict=True)
    )
    folder = train(recipe, tmp_path)
    assert torch.equal(trained_model(folder, data).get_parameter("whiten.weight"), filters)


@pytest.mark.parametrize("method", ["sgd", "l1+cram+"])
@pytest.mark.parametrize("epoch", [0, 1])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, method: str, epoch: int) -> None:
    recipe = fast_recipe(method=method, data__batch_size=16)
    whole = train(recipe, tmp_path / "whole")
    stopped = False

    def interrupt(progress: Progress) -> None:
        nonlocal stopped
        if not stopped and progress.epoch == epoch:
            stopped = True
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt, match="go on"):
        train(recipe, tmp_path / "parts", interrupt)
    folder = train(recipe, tmp_path / "parts")
    first, second = load_file(whole.model_file), load_file(folder.model_file)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert whole.metrics() == folder.metrics()


def test_groups_are_read_written_and_part_of_the_identity(tmp_path: Path) -> None:
    recipe = fast_recipe()
    recipe.write(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path) == recipe
    other = recipe.with_settings({"groups.biases.lr_factor": 5.0})
    assert other.groups["biases"].lr_factor == 5.0
    assert training_identity(other) != training_identity(recipe)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"include": "nothing*"}, r"groups.own takes no trained parameter: \['nothing\*'\]"),
        ({"include": "whiten.weight"}, "groups.own takes no trained parameter"),
    ],
)
def test_a_group_without_parameters_is_refused_before_anything_is_written(
    tmp_path: Path, group: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(fast_recipe(groups={"own": group}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({}, "groups.own.include"),
        ({"include": []}, "groups.own.include"),
        ({"include": "*", "lr_factor": -1}, r"groups.own.lr_factor: .*greater than or equal to 0 \(got -1\)"),
        ({"include": "*", "epochs": 0}, r"groups.own.epochs: .*greater than 0"),
        ({"include": "*", "rate": 1}, "unknown field 'groups.own.rate'"),
    ],
)
def test_wrong_groups_are_named(group: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fast_recipe(groups={"own": group})

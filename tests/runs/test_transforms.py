"""Gradient transforms in a training run: their order, clipping last and once, exact resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.runs.tiny import tiny_recipe
from trimtab import levers
from trimtab.runs.parallel import launch
from trimtab.runs.position import Progress
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.steering import steer
from trimtab.runs.training import train
from trimtab.runs.training_run import TrainingRun


def gradients_of_a_step(recipe: Recipe, folder: Path) -> list[Tensor]:
    """The gradients with which the base optimizer takes the first step, all levers done."""
    run = TrainingRun(recipe, RunFolder(folder), launch(recipe))
    seen: list[Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *rest: object) -> None:
        seen.extend(p.grad.clone() for group in optimizer.param_groups for p in group["params"] if p.grad is not None)

    run.steering.base.register_step_pre_hook(keep)  # after the levers' own hook
    run.model.train()
    torch.manual_seed(0)
    run.stepper.step([next(run.train_batches.epoch(0))])
    return seen


def norm(tensors: list[Tensor]) -> float:
    return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors])))


@pytest.mark.parametrize("method", ["sgd", "l1", "l1+sam"])
def test_the_final_gradient_is_clipped_once_after_the_penalty(tmp_path: Path, method: str) -> None:
    settings = {"method": method, "l1__strength": 10.0, "data__limit_train": 130}
    free = gradients_of_a_step(tiny_recipe(**settings), tmp_path)
    clipped = gradients_of_a_step(tiny_recipe(clip_norm=0.01, **settings), tmp_path)
    assert norm(free) > 0.1
    assert norm(clipped) == pytest.approx(0.01, rel=1e-3)  # a penalty added afterwards would make it larger
    for whole, small in zip(free, clipped, strict=True):  # one factor: clipping a pass of SAM as well would turn it
        torch.testing.assert_close(small, whole * (0.01 / norm(free)), rtol=1e-3, atol=1e-7)


def test_clipping_equals_torch_where_there_is_nothing_else(tmp_path: Path) -> None:
    recipe = tiny_recipe(data__limit_train=130)
    free = gradients_of_a_step(recipe, tmp_path)
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in free]
    for parameter, gradient in zip(parameters, free, strict=True):
        parameter.grad = gradient.clone()
    torch.nn.utils.clip_grad_norm_(parameters, 0.3)
    ours = gradients_of_a_step(recipe.with_settings({"clip_norm": 0.3}), tmp_path)
    for parameter, own in zip(parameters, ours, strict=True):
        torch.testing.assert_close(own, parameter.grad, rtol=1e-5, atol=1e-9)


def test_levers_stand_in_the_documented_order() -> None:
    recipe = tiny_recipe(method="l1+sam", transforms="zscore+centralize", clip_norm=1.0, zscore__granularity="channel")
    handle = steer(recipe, torch.nn.Linear(4, 3)).handle
    assert [type(lever).__name__ for lever in handle.levers] == ["L1", "ZScore", "Centralize", "ClipNorm"]
    assert "granularity='channel'" in repr(handle.levers[1])


def test_transforms_act_in_their_order_on_what_the_penalty_left(tmp_path: Path) -> None:
    settings = {"method": "l1", "l1__strength": 10.0, "data__limit_train": 130}
    for gradient in gradients_of_a_step(tiny_recipe(transforms="zscore", **settings), tmp_path):
        if gradient.ndim > 1:
            assert gradient.std() == pytest.approx(1.0, abs=1e-4)  # a penalty added afterwards would spoil it
    for gradient in gradients_of_a_step(tiny_recipe(transforms="zscore+centralize", **settings), tmp_path):
        if gradient.ndim > 1:
            assert gradient.flatten(1).mean(1).abs().max() < 1e-5
            assert not 0.9999 < float(gradient.std()) < 1.0001


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_the_true_gradient_is_transformed_and_clipped(fused: bool) -> None:
    recipe = tiny_recipe(transforms="centralize", clip_norm=0.1)
    found = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Linear(6, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0, fused=fused and scaled)
        levers.attach(optimizer, *(recipe.build(name) for name in recipe.used[1:]), model=model)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled)
        loss = model(torch.arange(12.0).reshape(2, 6)).square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        found.append(model.weight.detach())
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("method", ["sgd", "var+sam"])
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path: Path, method: str) -> None:
    recipe = tiny_recipe(method=method, transforms="autoscale", autoscale__scale="ema", clip_norm=0.5, epochs=2)
    whole = train(recipe, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.epoch == 0:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "parts", interrupt)
    parts = train(recipe, tmp_path / "parts")
    first, second = load_file(whole.model_file), load_file(parts.model_file)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_of_other_transforms_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=1, data__limit_train=130, transforms="zscore")
    train(recipe, tmp_path)
    train(recipe.with_settings({"autoscale.scale": "log"}), tmp_path)  # not read: the same run
    with pytest.raises(ValueError, match="holds a run of another recipe \\(levers"):
        train(recipe.with_settings({"transforms": "none"}), tmp_path)

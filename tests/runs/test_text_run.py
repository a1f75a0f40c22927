"""A language model goes through everything an image network does: levers, resume, pruning, bits per byte."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.battery import Row
from tests.test_battery_train import FIRST
from trimtab.registry import settings_name
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, build_model, load_data, trained_model
from trimtab.runs.objective import task_loss
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.runs.training import train
from trimtab.runs.training_run import TrainingRun
from trimtab.studies.prune_run import prune_run


def tiny(**settings: Any) -> Recipe:
    """Five steps of eight windows."""
    return load_recipe("sonnets").with_settings(
        {"epochs": 1, "data.limit_train": 40, "model.arguments": {"dim": 16, "depth": 1, "heads": 2}, **settings}
    )


def test_bits_per_byte_and_perplexity_against_numpy() -> None:
    recipe = tiny()
    data = load_data(recipe)
    model = build_model(recipe, data).eval()
    found = evaluate(model, batches_of(recipe, data, "test"), data.num_classes)
    with torch.no_grad():
        logits = model(data.test.images.long()).double().numpy()
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    truth = data.test.targets.numpy()
    given = np.take_along_axis(probabilities, truth[..., None], -1)
    assert found.bits_per_byte == pytest.approx(-np.log2(given).mean(), rel=1e-5)
    assert found.perplexity == pytest.approx(np.exp(-np.log(given).mean()), rel=1e-5)
    assert found.loss == pytest.approx(found.bits_per_byte * math.log(2), rel=1e-12)
    assert found.accuracy == pytest.approx((logits.argmax(-1) == truth).mean())
    assert found.top5 is None


def test_the_loss_is_that_of_every_byte_and_a_wrong_shape_is_named() -> None:
    targets = torch.randint(256, (3, 7))
    logits = torch.randn(3, 7, 256)
    each = nn.functional.cross_entropy(logits.transpose(1, 2), targets)
    assert torch.allclose(task_loss(logits, targets, label_smoothing=0.0, dice_weight=0.5), each)
    with pytest.raises(ValueError, match=r"must make logits \(3, 7, 'classes'\), it made \(3, 256, 7\)"):
        task_loss(logits.transpose(1, 2), targets, label_smoothing=0.0, dice_weight=0.5)


@pytest.mark.parametrize("row", FIRST.values(), ids=str)
def test_every_lever_trains_a_text(row: Row, tmp_path: Path) -> None:
    section = settings_name(row.name)
    settings = {f"{section}.{name}": value for name, value in row.under("train").settings.items()}
    run = train(tiny(levers=(row.name,)).with_settings(settings), tmp_path / "run")
    info = run.info()
    assert math.isfinite(info["train_loss"])
    assert info["validation_perplexity"] == pytest.approx(2 ** info["validation_bits_per_byte"])
    before = build_model(run.recipe, load_data(run.recipe))
    after = trained_model(run, load_data(run.recipe))
    assert any(not torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters(), strict=True))
    assert after.head.weight is after.embedding.weight  # type: ignore[union-attr]


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    recipe = tiny(epochs=2, method="l1+cram+")
    whole = trained_model(train(recipe, tmp_path / "whole"), load_data(recipe)).state_dict()
    steps = 0

    def stop(run: TrainingRun) -> None:
        step = run.stepper.step

        def counted(batch: Any) -> Tensor:
            nonlocal steps
            steps += 1
            if steps == 8:
                raise RuntimeError("killed")
            return step(batch)

        run.stepper.step = counted  # type: ignore[method-assign]

    with pytest.raises(RuntimeError, match="killed"):
        train(recipe, tmp_path / "stopped", prepare=stop)
    again = trained_model(train(recipe, tmp_path / "stopped"), load_data(recipe)).state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.parametrize("pruning", [{}, {"score": "wanda", "scope": "row"}, {"pattern": "2:4"}], ids=str)
def test_it_is_pruned_and_measured_in_bits(tmp_path: Path, pruning: dict[str, Any]) -> None:
    run = train(tiny(**{f"pruning.{name}": value for name, value in pruning.items()}), tmp_path / "run")
    found = prune_run(run)
    assert all(row.bits_per_byte is not None and row.perplexity is not None for row in found.rows)
    dense = next(row for row in found.rows if row.sparsity == 0)
    assert dense.bits_per_byte == pytest.approx(dense.loss / math.log(2))
    assert {row.recalibrated for row in found.rows} == {False}  # no BatchNorm in it
    assert "embedding.weight" not in found.left_out
    assert found.rows[-1].multiply_adds_ratio is None or found.rows[-1].multiply_adds_ratio >= 1


def test_views_and_image_networks_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="views must be 1 for a text such as sonnets, got 2"):
        train(tiny(views=2), tmp_path / "views")
    with pytest.raises(ValueError, match="'resnet8' takes no argument 'length'"):
        train(tiny(**{"model.name": "resnet8", "model.arguments": {}}), tmp_path / "images")
    assert not any(tmp_path.iterdir())

"""What a study would cost, from a few steps of each method, before anything is written."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from trimtab.pruning.recalibration import has_batch_norm
from trimtab.runs.parallel import launch
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training_run import TrainingRun
from trimtab.studies.prune_run import Split
from trimtab.studies.records import Records
from trimtab.studies.variants import Variant

STEPS, WARM_UP = 5, 2
"""Counted steps of each method, and those before them [ours]."""
PATIENCE = 10.0
"""Seconds after which the steps done are enough, if there is one [ours]."""


@dataclass(frozen=True)
class Estimated:
    """The cost of the runs of one label.

    Attributes:
        label: the method with its settings.
        runs, finished: how many are asked for, and how many of them are there already.
        steps: optimizer steps of one run.
        step_seconds: median seconds of one.
        train_seconds: of one run, its validations included.
        prune_seconds: of one run: every sparsity on every split, recalibrated too, and fine-tuned where asked for.
        bytes: of a run folder: checkpoint and network.
    """

    label: str
    runs: int
    finished: int
    steps: int
    step_seconds: float
    train_seconds: float
    prune_seconds: float
    bytes: int

    @property
    def left_seconds(self) -> float:
        """Of the runs that are not finished."""
        return (self.runs - self.finished) * (self.train_seconds + self.prune_seconds)


def estimate(
    variants: Sequence[Variant], folders: Sequence[Path], splits: Sequence[Split], records: Path | None = None
) -> list[Estimated]:
    """Time a few steps of each method on its own network and data; nothing is written.

    Args:
        variants: the runs.
        folders: where each goes.
        splits: what pruned networks would be measured on.
        records: folder of records; a run whose record is there is finished.
    """
    kept = None if records is None else Records(records)
    found = []
    for label in dict.fromkeys(variant.label for variant in variants):
        own = [(one, path) for one, path in zip(variants, folders, strict=True) if one.label == label]
        finished = sum(
            RunFolder(path).finished or (kept is not None and kept.done(one, splits) is not None) for one, path in own
        )
        found.append(_one(label, own[0][0].recipe, len(own), finished, splits))
    return found


def _one(label: str, recipe: Recipe, runs: int, finished: int, splits: Sequence[Split]) -> Estimated:
    recipe = recipe.model_copy(update={"track": (), "sink": ()})
    with tempfile.TemporaryDirectory() as scratch:
        run = TrainingRun(recipe, RunFolder(Path(scratch)), launch(recipe))
        run.stepper.set_learning_rate(0)
        batch = next(run.train_batches.epoch(0))
        run.model.train()
        seconds: list[float] = []
        begun = time.perf_counter()
        for _ in range(WARM_UP + STEPS):
            started = time.perf_counter()
            run.stepper.step([batch] * recipe.accumulate).item()
            seconds.append(time.perf_counter() - started)
            if time.perf_counter() - begun > PATIENCE:
                break
        image = _image_seconds(run.model, batch[0])
        weights = sum(item.numel() * item.element_size() for item in run.model.state_dict().values())
        state = sum(
            value.numel() * value.element_size()
            for values in run.steering.base.state.values()
            for value in values.values()
            if isinstance(value, torch.Tensor)
        )
    steps = recipe.epochs * run.position.steps_per_epoch
    validations = -(-recipe.epochs // recipe.validate_every)
    step = statistics.median(seconds[WARM_UP:] or seconds[-1:])
    train = steps * step + validations * len(run.data.validation) * image
    prune = _pruning_images(recipe, run, splits) * image
    if splits:  # fine-tuned once for all of them: the dense network, and each pruned one
        prune += recipe.pruning.finetune * (1 + _sparsities(recipe)) * run.position.steps_per_epoch * step
    return Estimated(label, runs, finished, steps, step, train, prune, 2 * weights + state)


def _sparsities(recipe: Recipe) -> int:
    return len(recipe.pruning.sparsities) if recipe.pruning.pattern == "unstructured" else 1


def _image_seconds(model: nn.Module, images: torch.Tensor) -> float:
    model.eval()
    times = []
    with torch.no_grad():
        for _ in range(3):
            started = time.perf_counter()
            model(images).sum().item()
            times.append(time.perf_counter() - started)
    return min(times) / len(images)


def _pruning_images(recipe: Recipe, run: TrainingRun, splits: Sequence[Split]) -> int:
    """Images that pass the network while it is pruned at every sparsity and measured on every split."""
    section = recipe.pruning
    points = 1 + _sparsities(recipe)
    points *= 3 if section.controls and recipe.is_plain else 1
    norms = has_batch_norm(run.model)
    calibration = section.recalibrate_batches * recipe.data.batch_size if norms else 0
    return sum(points * (len(getattr(run.data, split)) * (2 if norms else 1) + calibration) for split in splits)

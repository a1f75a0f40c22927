"""What a run's curvature is that of: the task's loss on training images as they are."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from trimtab import datasets
from trimtab.observe.curvature import Objective
from trimtab.runs.objective import task_loss
from trimtab.runs.recipe import Recipe


def training_images(
    recipe: Recipe, data: datasets.DataSet, examples: int, batch: int, seed: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Batches of `examples` training images, chosen by `seed` alone, without augmentation.

    Raises:
        ValueError: there are fewer training images.
    """
    if examples > len(data.train):
        raise ValueError(f"examples is {examples}, but {data.name!r} has {len(data.train)} training images here")
    served = datasets.Batches(data.train, data, batch, seed=seed, drop_last=False, device=device)
    found = []
    left = examples
    for images, targets in served.epoch(0):
        if recipe.model.channels_last and images.ndim == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        found.append((images[:left], targets[:left]))
        left -= len(found[-1][1])
        if not left:
            break
    return found


def objective_of(recipe: Recipe, model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> Objective:
    """The task's loss of the network on the batches: evaluation mode, no penalty, BatchNorm by its running statistics."""
    loss = functools.partial(task_loss, label_smoothing=recipe.label_smoothing, dice_weight=recipe.dice_weight)
    return Objective(model, loss, batches[0] if len(batches) == 1 else batches, reduction="mean")

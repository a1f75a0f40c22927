"""What a recipe's run works on: its data set, its network, batches of a split, and the network that a finished run left."""

from __future__ import annotations

import functools

import torch
from torch import nn

from trimtab import datasets, models
from trimtab.datasets.seeds import generator
from trimtab.runs.checkpoint import load_network
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.sections import Data

START_IMAGES = 5000
"""Training images that a network may start from."""


@functools.lru_cache(maxsize=2)
def _load(section: str) -> datasets.DataSet:
    data = Data.model_validate_json(section)
    return datasets.load(
        data.name,
        root=data.root,
        validation=data.validation,
        split_seed=data.split_seed,
        limit_train=data.limit_train,
        image_size=data.image_size,
        **data.arguments,
    )


def load_data(recipe: Recipe) -> datasets.DataSet:
    """The recipe's data set, kept in memory for the next run of the same process."""
    return _load(recipe.data.model_dump_json())


def in_memory_order(model: nn.Module, order: torch.memory_format) -> nn.Module:
    """Lay out the 4-D parameters of `model` in `order`, in place."""
    moved: nn.Module = model.to(memory_format=order)  # type: ignore[call-overload]
    return moved


def build_model(recipe: Recipe, data: datasets.DataSet) -> nn.Module:
    """The recipe's network with weights drawn from its seed, in the recipe's memory order, on the CPU.

    A network with a method `start_from(images)` is given `START_IMAGES` training images, normalised, drawn by the seed.
    """
    torch.manual_seed(recipe.seed)
    model = models.create(recipe.model.name, **{**data.network_arguments, **recipe.model.arguments})
    if callable(start := getattr(model, "start_from", None)):
        order = torch.randperm(len(data.train), generator=generator(recipe.seed, "start"))
        chosen = data.train.at(order[:START_IMAGES])
        images, _ = next(datasets.Batches(chosen, data, len(chosen), seed=0, shuffle=False).epoch(0))
        start(images)
    return in_memory_order(model, torch.channels_last) if recipe.model.channels_last else model


def batches_of(
    recipe: Recipe,
    data: datasets.DataSet,
    split: str,
    *,
    device: torch.device | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> datasets.Batches:
    """Batches of one split; only "train" is shuffled and augmented."""
    training = split == "train"
    return datasets.Batches(
        getattr(data, split),
        data,
        recipe.data.batch_size if training else max(recipe.data.batch_size, 256),
        seed=recipe.seed,
        augment=recipe.data.augment if training else "none",
        shuffle=training,
        drop_last=training,
        device=device or torch.device("cpu"),
        rank=rank,
        world_size=world_size,
    )


def trained_model(folder: RunFolder, data: datasets.DataSet) -> nn.Module:
    """The finished network of a run, in evaluation mode on the CPU.

    Raises:
        ValueError: the run is not finished, or its file is damaged or does not fit the recipe's network.
    """
    if not folder.model_file.is_file():
        raise ValueError(
            f"{folder.path} holds no trained network (status {folder.info().get('status', 'not started')!r})"
        )
    model = build_model(folder.recipe, data)
    load_network(folder.model_file, model)
    return model.eval()

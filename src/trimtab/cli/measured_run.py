"""What `trimtab compress` measures of a finished run: the loss for the choice, the quality on two splits."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from trimtab import pruning
from trimtab.datasets import DataSet
from trimtab.runs.evaluation import Quality, evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.metric import metric_of
from trimtab.runs.run_folder import RunFolder

IMAGES = 2000
"""Training images on which the loss is measured for the choice."""


class MeasuredRun:
    """What a finished run says of a network: loss on training images, quality on the validation and the test split."""

    def __init__(self, folder: RunFolder, root: str | None) -> None:
        recipe = folder.recipe
        if root is not None:
            recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
        self.recipe, self.data = recipe, load_data(recipe)
        self.device = torch.device("cuda" if recipe.device != "cpu" and torch.cuda.is_available() else "cpu")
        self.model = trained_model(folder, self.data).to(self.device)
        drawn = torch.randperm(len(self.data.train), generator=torch.Generator().manual_seed(recipe.seed))[:IMAGES]
        self.drawn = dataclasses.replace(self.data, validation=self.data.train.at(drawn))
        self.calibration = batches_of(recipe, self.data, "train", device=self.device).sample(
            recipe.pruning.recalibrate_batches, recipe.seed
        )
        self.metric = metric_of(self.data.task)
        self.split = "validation" if len(self.data.validation) else "training"

    def _evaluated(self, model: nn.Module, data: DataSet, split: str) -> Quality:
        return evaluate(model, batches_of(self.recipe, data, split, device=self.device), data.num_classes)

    def loss(self, model: nn.Module) -> float:
        """On drawn training images."""
        return self._evaluated(model, self.drawn, "validation").loss

    def quality(self, model: nn.Module) -> float:
        """As the metric is written but better when larger, on the validation split where there is one."""
        data = self.data if self.split == "validation" else self.drawn
        return self.metric.gain(self.metric.scale * self._value(model, data, "validation"))

    def _value(self, model: nn.Module, data: DataSet, split: str) -> float:
        return float(getattr(self._evaluated(model, data, split), self.metric.column))

    def test(self, model: nn.Module) -> float:
        """As the metric is written, on the test split."""
        return self.metric.scale * self._value(model, self.data, "test")

    def recalibrate(self, model: nn.Module) -> None:
        """BatchNorm's statistics."""
        pruning.recalibrate(model, self.calibration, device=self.device)

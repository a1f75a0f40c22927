"""LightningModules of the tests; imported inside the tests, because importing Lightning takes seconds."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.adapters.data import INPUTS, LABELS, network


class Automatic(LightningModule):
    """The network, trained by SGD with momentum; `train_losses` keeps what it saw."""

    def __init__(self, **optimizer: Any) -> None:
        super().__init__()
        self.net = network()
        self.settings = {"lr": 0.1, "momentum": 0.9, **optimizer}

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(self.net(inputs), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), **self.settings)

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TensorDataset(INPUTS, LABELS), batch_size=8)


class Manual(Automatic):
    """The same steps by manual optimisation."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, index))
        optimizer.step()


class TwoOptimizers(Manual):
    """One optimizer per layer."""

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.SGD(self.net[layer].parameters(), lr=0.1) for layer in (0, 2)]

    def training_step(self, batch: list[Tensor], index: int) -> None:
        first, second = self.optimizers()
        first.zero_grad()
        second.zero_grad()
        self.manual_backward(Automatic.training_step(self, batch, index))
        first.step()
        second.step()

"""One optimizer step of a run: learning rate, passes over the micro-batches, levers, gradient scaler."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from trimtab.runs.objective import learning_rate_factor, task_loss
from trimtab.runs.parallel import Devices
from trimtab.runs.recipe import Recipe
from trimtab.runs.steering import Steering

Batch = Sequence[tuple[Tensor, Tensor]]
"""The micro-batches of one step: (images, targets)."""


class Stepper:
    """Takes the recipe's steps on a network, whoever counts them: a training run, or a stopwatch.

    Args:
        recipe: what to do.
        devices: where.
        model: as `Devices.setup_model` made it.
        steering: its optimizer with the levers attached.
        steps_per_epoch: for the schedule.
    """

    def __init__(
        self, recipe: Recipe, devices: Devices, model: nn.Module, steering: Steering, steps_per_epoch: int
    ) -> None:
        self.recipe, self.devices, self.model, self.steering = recipe, devices, model, steering
        self.steps_per_epoch = steps_per_epoch

    def set_learning_rate(self, step: int) -> float:
        """Give the optimizer the schedule's rate of the 0-based `step`; returns it."""
        schedule = self.recipe.schedule
        factor = learning_rate_factor(
            schedule.name,
            step,
            self.steps_per_epoch,
            self.recipe.epochs,
            warmup_epochs=schedule.warmup_epochs,
            step_epochs=schedule.step_epochs,
            gamma=schedule.gamma,
        )
        rate = 0.0
        for group in self.steering.base.param_groups:
            rate = group.setdefault("initial_lr", group["lr"]) * factor
            group["lr"] = rate
        return rate

    def loss(self, batch: Batch) -> Tensor:
        """Zero the gradients, backpropagate the mean loss over the micro-batches, return it."""
        self.steering.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.devices.device)
        for position, (images, targets) in enumerate(batch):
            with self.devices.gradients_reduced(self.model, last=position == len(batch) - 1):
                with self.devices.autocast():
                    outputs = self.model(images)
                loss = task_loss(
                    outputs, targets, label_smoothing=self.recipe.label_smoothing, dice_weight=self.recipe.dice_weight
                ) / len(batch)
                torch.autograd.backward(self.devices.scaled(loss))
            total += loss.detach()
        return total

    def step(self, batch: Batch) -> Tensor:
        """Take one step on `batch`; returns the mean loss before it."""
        wrapper, base, scaler = self.steering.wrapper, self.steering.base, self.devices.scaler
        if wrapper is not None:
            loss: Tensor = wrapper.step(lambda: self.loss(batch), grad_scaler=scaler)
        else:
            loss = self.loss(batch)
            if scaler is not None:
                scaler.unscale_(base)
                scaler.step(base)
            else:
                base.step()
        if scaler is not None:
            scaler.update()
        return loss

"""One optimizer step of a run: learning rate, passes over the micro-batches, levers, gradient scaler."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.runs.groups import end_of
from trimtab.runs.objective import each_byte, is_text, learning_rate_factor, task_loss
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
        see_outputs: called with the outputs and targets of every micro-batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        devices: Devices,
        model: nn.Module,
        steering: Steering,
        steps_per_epoch: int,
        see_outputs: Callable[[Tensor, Tensor], None] | None = None,
    ) -> None:
        self._see_outputs = see_outputs or (lambda outputs, targets: None)
        self.recipe, self.devices, self.model, self.steering = recipe, devices, model, steering
        self.steps_per_epoch = steps_per_epoch

    def set_learning_rate(self, step: int) -> float:
        """Give each of the optimizer's groups the schedule's rate of the 0-based `step`; returns the first one's."""
        for group in self.steering.base.param_groups:
            end = self._end(group)
            over = step >= end * self.steps_per_epoch
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * (0.0 if over else self._factor(step, end))
        rate: float = self.steering.base.param_groups[0]["lr"]
        return rate

    def _end(self, group: Mapping[str, Any]) -> float:
        return end_of(group, self.recipe.groups, self.recipe.epochs)

    def _factor(self, step: int, epochs: float) -> float:
        schedule = self.recipe.schedule
        return learning_rate_factor(
            schedule.name,
            step,
            self.steps_per_epoch,
            epochs,
            warmup_epochs=schedule.warmup_epochs,
            step_epochs=schedule.step_epochs,
            gamma=schedule.gamma,
        )

    def remaining(self, step: int) -> float:
        """Sum of the learning rates from the 0-based `step` to the end, in initial ones, of a group that trains to the end."""
        epochs = self.recipe.epochs
        return math.fsum(self._factor(each, epochs) for each in range(step, epochs * self.steps_per_epoch))

    @contextmanager
    def _without_gradients_of_the_past(self) -> Iterator[None]:
        """No gradient where the rate is 0 for good: a single process computes none, several wait for all and drop it."""
        past = [
            parameter
            for group in self.steering.base.param_groups
            if group["lr"] == 0 and self._end(group) < self.recipe.epochs
            for parameter in group["params"]
        ]
        for parameter in past:
            parameter.requires_grad = self.devices.world_size > 1
        try:
            yield
        finally:
            for parameter in past:
                parameter.requires_grad, parameter.grad = True, None

    def loss(self, batch: Batch) -> Tensor:
        """Zero the gradients, backpropagate the mean loss over the micro-batches, return it."""
        self.steering.optimizer.zero_grad(set_to_none=True)
        with self._without_gradients_of_the_past():
            return self._passes(batch)

    def _passes(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self.devices.device)
        for position, (images, targets) in enumerate(batch):
            with self.devices.gradients_reduced(self.model, last=position == len(batch) - 1):
                with self.devices.autocast():
                    outputs = self.model(images)
                seen = (outputs.detach(), targets)
                self._see_outputs(*(each_byte(*seen) if is_text(targets) else seen))
                loss = task_loss(
                    outputs, targets, label_smoothing=self.recipe.label_smoothing, dice_weight=self.recipe.dice_weight
                ) / len(batch)
                torch.autograd.backward(self.devices.scaled(loss))
            total += loss.detach()
        return total

    def _passes_told(self, batch: Batch) -> Callable[[], Tensor]:
        """A closure whose first loss, that of the weights before the step, the levers are told."""
        first = True

        def closure() -> Tensor:
            nonlocal first
            loss = self.loss(batch)
            if first:
                self.steering.see(loss)
            first = False
            return loss

        return closure

    def step(self, batch: Batch) -> Tensor:
        """Take one step on `batch`; returns the mean loss before it."""
        wrapper, base, scaler = self.steering.wrapper, self.steering.base, self.devices.scaler
        if wrapper is not None:
            loss: Tensor = wrapper.step(self._passes_told(batch), grad_scaler=scaler)
        else:
            loss = self._passes_told(batch)()
            if scaler is not None:
                scaler.unscale_(base)
                scaler.step(base)
            else:
                base.step()
        if scaler is not None:
            scaler.update()
        return loss

"""One run in memory: its data, devices, network, steering and watching, and the walk through its epochs."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from trimtab.collectives import sum_over_ranks
from trimtab.parameters.wrappers import unwrapped
from trimtab.pruning import recalibrate
from trimtab.runs.divergence import check_finite, penalty_row
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, build_model, load_data
from trimtab.runs.metric import metric_of
from trimtab.runs.parallel import Devices
from trimtab.runs.position import Position, Progress
from trimtab.runs.prunable import check_prunable
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.steering import steer
from trimtab.runs.stepper import Batch, Stepper
from trimtab.runs.stopping import StopRequest
from trimtab.runs.watching import Watching

REPORTED = 20
"""Steps between reports [ours]; the last of an epoch always makes one."""


class TrainingRun:
    """The parts of a run put together; nothing is written before it trains.

    Attributes:
        recipe, folder, devices: as given.
        data, train_batches, validation_batches: what it sees.
        metric: what its quality is measured in.
        model: the network, replicated or sharded where there are several processes.
        watching: what looks at it.
        steering: its optimizer with the levers attached.
        stepper: takes its steps.
        position: where it stands.

    Raises:
        ValueError: data or network do not fit, an N:M pattern to prune by does not divide the network's weights, or there are
            fewer batches than one step accumulates.
    """

    def __init__(self, recipe: Recipe, folder: RunFolder, devices: Devices) -> None:
        self.recipe, self.folder, self.devices = recipe, folder, devices
        self.data = load_data(recipe)
        place: dict[str, Any] = {"device": devices.device, "rank": devices.rank, "world_size": devices.world_size}
        self.train_batches = batches_of(recipe, self.data, "train", **place)
        # A sharded forward pass is a collective: there every rank looks at all validation images, in step with the others.
        self.validation_batches = batches_of(
            recipe, self.data, "validation", **({"device": devices.device} if devices.sharded else place)
        )
        if recipe.views > 1 and self.data.task != "classification":
            raise ValueError(f"views must be 1 for a {self.data.task} such as {self.data.name}, got {recipe.views}")
        if len(self.train_batches) < recipe.accumulate:
            raise ValueError(
                f"data.batch_size {recipe.data.batch_size} x accumulate {recipe.accumulate} exceeds the "
                f"{len(self.data.train)} training images of {self.data.name}"
            )
        self.metric = metric_of(self.data.task)
        model = build_model(recipe, self.data)
        check_prunable(recipe, model)
        self.model = devices.setup_model(model)
        self.watching = Watching(recipe, self.data, devices, folder.path, unwrapped(self.model))
        steps_per_epoch = len(self.train_batches) // recipe.accumulate
        self.steering = steer(
            recipe,
            unwrapped(self.model),
            self.watching.tracker,
            self.watching.meters,
            folder=folder.path,
            reducing=self.model,
            steps_per_epoch=steps_per_epoch,
        )
        self.stepper = Stepper(recipe, devices, self.model, self.steering, steps_per_epoch, self.watching.see_outputs)
        self.position = Position(steps_per_epoch, devices.device)

    def run_epoch(self, stop: StopRequest, report: Callable[[Progress], None]) -> bool:
        """Train to the end of the epoch; False when a stop was asked for."""
        recipe, position = self.recipe, self.position
        self.model.train()
        stream = self.train_batches.epoch(position.epoch, start_batch=position.step_in_epoch * recipe.accumulate)
        while position.step_in_epoch < position.steps_per_epoch:
            started, worked = time.perf_counter(), time.process_time()
            # Seeding each step makes dropout a function of (seed, step, rank): a resumed run draws the same masks.
            torch.manual_seed((recipe.seed * 1_000_003 + position.step) * 1009 + self.devices.rank)
            rate = self.stepper.set_learning_rate(position.step)
            batch = [next(stream) for _ in range(recipe.accumulate)]
            loss = self._step(batch, rate)
            position.stepped(loss, time.perf_counter() - started, time.process_time() - worked)
            if position.step_in_epoch % REPORTED == 0 or position.at_end:
                if position.at_end:
                    self.watching.flush()
                total = position.epoch_loss.item()
                check_finite(recipe, position.epoch, total, self.steering)
                report(
                    position.progress(recipe.epochs, total / position.step_in_epoch, self.watching.latest, self.metric)
                )
            if not position.at_end and self.devices.any_rank(stop.asked):
                return False
        if position.epoch + 1 == recipe.epochs:
            self._finish_levers()
        position.end_epoch(self._row(position.epoch + 1))
        return True

    def _step(self, batch: Batch, rate: float) -> Tensor:
        """One step; the last of an epoch is looked at where the recipe asks for it."""
        position = self.position
        if position.step_in_epoch + 1 < position.steps_per_epoch:
            return self.stepper.step(batch)
        model = unwrapped(self.model)
        return self.watching.last_step(position.epoch + 1, model, batch, rate, lambda: self.stepper.step(batch))

    def _finish_levers(self) -> None:
        """After the last step: what the levers do last, and BatchNorm statistics for the weights that they leave.

        In the same breath as the last step: a checkpoint is of before all of it or of after.
        """
        if not self.steering.handle.finish():
            return
        section = self.recipe.pruning
        with self.devices.autocast():
            recalibrate(
                self.model,
                self.train_batches.sample(section.recalibrate_batches, self.recipe.seed),
                device=self.devices.device,
            )

    def _row(self, epoch: int) -> dict[str, Any]:
        """What `metrics.jsonl` says after so many epochs."""
        recipe, devices, steps = self.recipe, self.devices, self.position.steps_per_epoch
        rate = self.stepper.set_learning_rate(epoch * steps - 1)
        loss = (sum_over_ranks(self.position.epoch_loss) / (steps * devices.world_size)).item()
        row: dict[str, Any] = {"epoch": epoch, "train_loss": loss, "lr": rate}
        if self.steering.skipped:
            row["skipped_steps"] = self.steering.skipped
        row |= penalty_row(self.steering, self.model, loss)
        for name, numbers in self.steering.describe().items():
            row |= {f"{name}.{key}": value for key, value in numbers.items()}
        model = unwrapped(self.model)
        if epoch % recipe.validate_every == 0 or epoch == recipe.epochs:
            quality = evaluate(model, self.validation_batches, self.data.num_classes, autocast=devices.autocast())
            row["validation_accuracy"], row["validation_loss"] = quality.accuracy, quality.loss
            if quality.bits_per_byte is not None:
                row["validation_bits_per_byte"], row["validation_perplexity"] = (
                    quality.bits_per_byte,
                    quality.perplexity,
                )
        if recipe.views > 1 and epoch == recipe.epochs:
            seen = evaluate(
                model, self.validation_batches, self.data.num_classes, autocast=devices.autocast(), views=recipe.views
            )
            row |= {
                "views": recipe.views,
                "validation_accuracy_views": seen.accuracy,
                "validation_loss_views": seen.loss,
            }
        return row | self.watching.after_epoch(epoch, model)

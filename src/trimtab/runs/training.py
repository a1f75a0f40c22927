"""Train one recipe into one run folder; killed and resumed equals uninterrupted."""

from __future__ import annotations

import functools
import signal
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from trimtab import datasets, models
from trimtab.collectives import sum_over_ranks
from trimtab.inputs import named
from trimtab.observe import GradientTracker
from trimtab.parameters.wrappers import unwrapped
from trimtab.runs.checkpoint import load_network, save_network
from trimtab.runs.curvature_tracking import CurvatureTracking
from trimtab.runs.evaluation import evaluate
from trimtab.runs.machine import hardware, versions
from trimtab.runs.objective import learning_rate_factor, task_loss
from trimtab.runs.parallel import Devices, launch
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.sections import Data
from trimtab.runs.steering import Steering, steer
from trimtab.runs.tracked import Latest, columns_of, latest


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to the caller's function after every step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    validation: float | None
    latest: Latest | None = None
    """Gradients at the last step that was fetched, where they are tracked."""


class _StopRequest:
    """Turns Ctrl-C and SIGTERM into a flag that is looked at between steps; Ctrl-C again, a second later, stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._since = 0.0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        # The terminal's Ctrl-C and a parent's SIGTERM may both arrive: only a person's second Ctrl-C means "at once".
        if self.asked and number == signal.SIGINT and time.monotonic() - self._since > 1:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._since = True, time.monotonic()


@contextmanager
def _stop_between_steps() -> Iterator[_StopRequest]:
    request = _StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


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
    """The recipe's network with weights drawn from its seed, in the recipe's memory order, on the CPU."""
    torch.manual_seed(recipe.seed)
    model = models.create(
        recipe.model.name,
        num_classes=data.num_classes,
        in_channels=data.in_channels,
        image_size=data.image_size,
        **recipe.model.arguments,
    )
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


SKIPPED_AT_MOST = 20  # steps in a row whose gradients hold inf or NaN, before a run gives up [ours]


class TrainingRun:
    """One run: data, network, optimizer with levers, and its position in the epochs."""

    def __init__(self, recipe: Recipe, folder: RunFolder, devices: Devices) -> None:
        self.recipe, self.folder, self.devices = recipe, folder, devices
        self.data = load_data(recipe)
        place: dict[str, Any] = {"device": devices.device, "rank": devices.rank, "world_size": devices.world_size}
        self.train_batches = batches_of(recipe, self.data, "train", **place)
        # A sharded forward pass is a collective: there every rank looks at all validation images, in step with the others.
        self.validation_batches = batches_of(
            recipe, self.data, "validation", **({"device": devices.device} if devices.sharded else place)
        )
        if len(self.train_batches) < recipe.accumulate:
            raise ValueError(
                f"data.batch_size {recipe.data.batch_size} x accumulate {recipe.accumulate} exceeds the "
                f"{len(self.data.train.targets)} training images of {self.data.name}"
            )
        self.model = devices.setup_model(build_model(recipe, self.data))
        watched = tuple(kind for kind in recipe.track if kind != "curvature")
        self.tracker = (
            GradientTracker(watched, recipe.track_every, folder=folder.path, overwrite=True) if watched else None
        )
        self.curvature = CurvatureTracking(recipe, self.data, devices) if "curvature" in recipe.track else None
        self.latest: Latest | None = None
        if self.tracker is not None:
            self.tracker.subscribe(self._look)
        self.steering: Steering = steer(
            recipe, unwrapped(self.model), self.tracker, folder=folder.path, reducing=self.model
        )
        self.steps_per_epoch = len(self.train_batches) // recipe.accumulate
        self.epoch, self.step_in_epoch = 0, 0
        self.epoch_loss = torch.zeros((), dtype=torch.float64, device=devices.device)
        self.rows: list[dict[str, Any]] = []
        self.step_seconds: list[float] = []
        self.train_seconds = 0.0

    def resume(self) -> None:
        """Take over the folder's checkpoint, if there is one."""
        state = self.folder.load_checkpoint()
        if state is None:
            return
        if state.get("world_size") != self.devices.world_size:
            raise ValueError(
                f"{self.folder.checkpoint_file} was left by {state.get('world_size')} process(es), this run has "
                f"{self.devices.world_size}; the batches would differ, so go on with as many or choose another folder"
            )
        with named(self.folder.checkpoint_file, "does not fit this run"):
            self._take_over(state)

    def _take_over(self, state: dict[str, Any]) -> None:
        self.devices.load_model_and_optimizer(self.model, self.steering.optimizer, state)
        self.steering.handle.load_state_dict(state["levers"])
        if self.devices.scaler is not None:
            self.devices.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        if self.tracker is not None:
            if (tracked := state.get("tracker")) is not None:
                self.tracker.load_state_dict(tracked)
            else:  # the run was not tracked so far
                self.tracker.step = self.epoch * self.steps_per_epoch + self.step_in_epoch
        self.epoch_loss.fill_(state["epoch_loss"])
        self.rows, self.train_seconds = state["rows"], state["train_seconds"]
        self.step_seconds = [state["step_seconds"]] if state["step_seconds"] else []

    def save(self) -> None:
        """Write a checkpoint and the metrics so far."""
        state = self.devices.model_and_optimizer_state(self.model, self.steering.optimizer)
        state |= {
            "levers": self.steering.handle.state_dict(),
            "tracker": self.tracker.state_dict() if self.tracker is not None else None,
            "scaler": self.devices.scaler.state_dict() if self.devices.scaler is not None else None,
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "world_size": self.devices.world_size,
            "epoch_loss": sum_over_ranks(self.epoch_loss).item() / self.devices.world_size,
            "rows": self.rows,
            "train_seconds": self.train_seconds,
            "step_seconds": self.median_step_seconds,
        }
        if self.devices.rank == 0:
            self.folder.save_checkpoint(state)
            self.folder.write_metrics(self.rows)

    @property
    def median_step_seconds(self) -> float:
        """Median wall seconds of one optimizer step."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0

    def _loss(self, batch: list[tuple[Tensor, Tensor]]) -> Tensor:
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

    def _step(self, batch: list[tuple[Tensor, Tensor]]) -> Tensor:
        wrapper, base, scaler = self.steering.wrapper, self.steering.base, self.devices.scaler
        if wrapper is not None:
            loss: Tensor = wrapper.step(lambda: self._loss(batch), grad_scaler=scaler)
        else:
            loss = self._loss(batch)
            if scaler is not None:
                scaler.unscale_(base)
                scaler.step(base)
            else:
                base.step()
        if scaler is not None:
            scaler.update()
        return loss

    def _set_learning_rate(self, step: int) -> float:
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

    def _check_finite(self) -> None:
        if not bool(torch.isfinite(self.epoch_loss)):
            raise FloatingPointError(
                f"the training loss became {self.epoch_loss.item()} in epoch {self.epoch + 1} of method "
                f"{self.recipe.method!r} (seed {self.recipe.seed}); lower the learning rate or the penalty's strength"
            )

        if self.steering.skipped_in_a_row >= SKIPPED_AT_MOST:
            raise FloatingPointError(
                f"the gradients held inf or NaN in the last {self.steering.skipped_in_a_row} steps, which were skipped, in "
                f"epoch {self.epoch + 1} of method {self.recipe.method!r} (seed {self.recipe.seed}); lower the learning rate"
            )

    def run_epoch(self, stop: _StopRequest, report: Callable[[Progress], None]) -> bool:
        """Train to the end of the epoch; False when a stop was asked for."""
        recipe = self.recipe
        self.model.train()
        stream = self.train_batches.epoch(self.epoch, start_batch=self.step_in_epoch * recipe.accumulate)
        while self.step_in_epoch < self.steps_per_epoch:
            started = time.perf_counter()
            step = self.epoch * self.steps_per_epoch + self.step_in_epoch
            # Seeding each step makes dropout a function of (seed, step, rank): a resumed run draws the same masks.
            torch.manual_seed((recipe.seed * 1_000_003 + step) * 1009 + self.devices.rank)
            self._set_learning_rate(step)
            self.epoch_loss += self._step([next(stream) for _ in range(recipe.accumulate)])
            self.step_in_epoch += 1
            self.step_seconds.append(time.perf_counter() - started)
            self.train_seconds += self.step_seconds[-1]
            if self.step_in_epoch % 20 == 0 or self.step_in_epoch == self.steps_per_epoch:
                if self.tracker is not None and self.step_in_epoch == self.steps_per_epoch:
                    self.tracker.flush()
                self._check_finite()
                report(self._progress((self.epoch_loss / self.step_in_epoch).item()))
            if self.devices.any_rank(stop.asked):
                return False
        self._end_of_epoch()
        return True

    def _progress(self, loss: float | None) -> Progress:
        done = self.epoch * self.steps_per_epoch + self.step_in_epoch
        last = next((row["validation_accuracy"] for row in reversed(self.rows) if "validation_accuracy" in row), None)
        steps = self.recipe.epochs * self.steps_per_epoch
        return Progress(self.epoch, self.recipe.epochs, done, steps, loss, last, self.latest)

    def _look(self, rows: Any, signals: Any) -> None:
        """Keep what a flush of the tracker brought, for the display."""
        self.latest = latest(columns_of(rows), signals.to_pydict()) or self.latest

    def _end_of_epoch(self) -> None:
        rate = self._set_learning_rate((self.epoch + 1) * self.steps_per_epoch - 1)
        loss = (sum_over_ranks(self.epoch_loss) / (self.steps_per_epoch * self.devices.world_size)).item()
        row: dict[str, Any] = {"epoch": self.epoch + 1, "train_loss": loss, "lr": rate}
        if self.steering.skipped:
            row["skipped_steps"] = self.steering.skipped
        if penalties := self.steering.penalties:
            with torch.no_grad():
                values = [float(penalty.value(self.model)) for penalty in penalties]
            row["penalty"] = sum(values)
            for penalty, value in zip(penalties, values, strict=True):
                if value > 10 * loss:
                    warnings.warn(
                        f"penalty {penalty!r} is {value:.3g}, more than 10 x the task loss {loss:.3g}: its strength is too "
                        "high for weights this small",
                        stacklevel=2,
                    )
        if (self.epoch + 1) % self.recipe.validate_every == 0 or self.epoch + 1 == self.recipe.epochs:
            quality = evaluate(
                unwrapped(self.model),
                self.validation_batches,
                self.data.num_classes,
                autocast=self.devices.autocast(),
            )
            row["validation_accuracy"], row["validation_loss"] = quality.accuracy, quality.loss
        if self.curvature is not None and self.curvature.due(self.epoch + 1):
            row |= self.curvature.measure(unwrapped(self.model))
        self.rows.append(row)
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.epoch_loss.zero_()

    def finish(self) -> None:
        """Write the trained network and mark the run as finished."""
        self.save()
        model = self.devices.whole_model(self.model, lambda: build_model(self.recipe, self.data))
        if self.devices.rank == 0:
            in_memory_order(model, torch.contiguous_format)
            save_network(self.folder.model_file, model)
            self.folder.write_info(
                status="finished",
                steps=self.epoch * self.steps_per_epoch,
                epochs=self.epoch,
                train_seconds=self.train_seconds,
                step_seconds=self.median_step_seconds,
                train_loss=self.rows[-1]["train_loss"],
                validation_accuracy=self.rows[-1]["validation_accuracy"],
            )


def train(recipe: Recipe, path: Path, report: Callable[[Progress], None] | None = None) -> RunFolder:
    """Train `recipe` into the run folder `path`; go on where a checkpoint lies; do nothing when it is finished.

    Args:
        recipe: what to do.
        path: the run folder, created when absent.
        report: called during training with the `Progress`.

    Returns:
        The run folder.

    Raises:
        ValueError: the folder holds a run of another recipe, or data or network do not fit.
        FloatingPointError: the loss is not finite; the last checkpoint stays.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written, calling again goes on from it.
    """
    folder = RunFolder(path)
    devices = launch(recipe)
    folder.check(recipe)
    if folder.finished:
        return folder
    run = TrainingRun(recipe, folder, devices)  # before anything is written: bad input leaves nothing behind
    with folder.alone() if devices.rank == 0 else nullcontext():
        _train(run, report or (lambda progress: None))
    devices.barrier()
    return folder


def _train(run: TrainingRun, report: Callable[[Progress], None]) -> None:
    recipe, folder, devices = run.recipe, run.folder, run.devices
    run.resume()
    devices.barrier()
    if devices.rank == 0:
        folder.open(recipe)
        data = {split: len(getattr(run.data, split).targets) for split in ("train", "validation", "test")}
        folder.write_info(
            status="running",
            versions=versions(),
            hardware=hardware(),
            images=data,
            task=run.data.task,
            classes=run.data.num_classes,
            notes=list(run.data.notes),
        )
    with _stop_between_steps() as stop, _rows_kept(run):
        while run.epoch < recipe.epochs:
            complete = run.run_epoch(stop, report)
            if not complete or run.devices.any_rank(stop.asked):
                run.save()
                if devices.rank == 0:
                    folder.write_info(status="interrupted")
                raise KeyboardInterrupt(f"stopped after epoch {run.epoch}; run the same command again to go on")
            if run.epoch % recipe.checkpoint_every == 0 and run.epoch < recipe.epochs:
                run.save()
        run.finish()


@contextmanager
def _rows_kept(run: TrainingRun) -> Iterator[None]:
    """After an exception the rows so far are on disk, also where the process lives on."""
    try:
        yield
    except Exception:
        meters = [getattr(lever, "meter", None) for lever in run.steering.handle.levers]
        for rows in (run.tracker, *meters):
            if rows is not None:
                rows.flush()
        raise


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


__all__ = ["Progress", "TrainingRun", "batches_of", "build_model", "load_data", "train", "trained_model"]

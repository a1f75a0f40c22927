"""What a network could bear now: its quality pruned and in few bits as it trains, and how large a step it would have borne."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from trimtab import datasets
from trimtab.collectives import sum_over_ranks
from trimtab.datasets.seeds import generator
from trimtab.observe.critical_rate import FORWARDS, critical_factor
from trimtab.observe.untouched import untouched
from trimtab.parameters import PRUNABLE, select
from trimtab.precision import PerChannel, quantize
from trimtab.pruning import recalibrate, sweep
from trimtab.pruning.recalibration import has_batch_norm
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of
from trimtab.runs.metric import metric_of
from trimtab.runs.objective import task_loss
from trimtab.runs.parallel import Devices
from trimtab.runs.recipe import Recipe

SHARE = 0.03
"""Most that looking may cost, as a share of the forward and backward passes of training [ours]."""
BACKWARD = 2.0
"""A backward pass in forward passes: two products for one."""
Batch = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Plan:
    """How often a run is looked at, and what that costs.

    Attributes:
        every: epochs between two looks, counted back from the last epoch, which always has one.
        looks: how many there are.
        cost: forward passes of single images for all of them, as a share of training's passes (a backward pass counted twice).
    """

    every: int
    looks: int
    cost: float


def plan(epochs: int, trained: int, looked: int, every: int | None) -> Plan:
    """The fewest epochs between looks that keep the cost at 3 %, or those asked for.

    With one look at the end that alone costs more, there is that one.

    Args:
        epochs: of the run.
        trained: images of one epoch.
        looked: images that pass the network in one look.
        every: as asked for; None for the fewest.

    Example:
        >>> plan(epochs=100, trained=45_000, looked=9_000, every=None)
        Plan(every=3, looks=34, cost=0.0226...)
    """
    passes = (1 + BACKWARD) * trained * epochs

    def looks(step: int) -> int:
        return math.ceil(epochs / step)

    if every is None:
        fitting = (step for step in range(1, epochs + 1) if looks(step) * looked <= SHARE * passes)
        every = next(fitting, epochs)
    return Plan(every, looks(every), looks(every) * looked / passes)


class Bearing:
    """Looks at a network at the end of epochs: what it keeps when pruned or rounded, and how large a step it would have borne.

    Quality on one fixed sample of the validation split: dense, pruned once by global magnitude to each of
    `track_bearing_sparsities`, and with its weights rounded to each of `track_bearing_bits` (whole numbers, one scale for each
    output channel). BatchNorm is re-estimated in each state on as many training images. What a lever does at the end of a run
    (weights averaged, a sparse copy put in) is not in it but after the last epoch.

    The critical learning rate is that of the epoch's last step on its own batch, BatchNorm by the batch, dropout off: the
    smallest multiple of the step that raises the loss, times the step's learning rate (`critical_factor`).

    Weights, buffers, modes and random state are put back bit for bit, so a run with and without is the same. Under
    DistributedDataParallel each rank takes its share.

    Args:
        recipe: `track_bearing_every`, `track_bearing_images`, `track_bearing_sparsities`, `track_bearing_bits`.
        data: the loaded data set.
        devices: where, and among which ranks.
        model: the network, unwrapped.

    Raises:
        ValueError: parameters are sharded, or the network has no weight to prune.
    """

    def __init__(self, recipe: Recipe, data: datasets.DataSet, devices: Devices, model: nn.Module) -> None:
        if devices.sharded:
            raise ValueError("track: bearing needs whole parameters on each rank; with strategy fsdp leave it out")
        self._chosen = [entry.name for entry in select(model, PRUNABLE).chosen if entry.computed is None]
        if not self._chosen:
            raise ValueError("track: bearing prunes the network, and this one has no weight to prune")
        self._recipe, self._devices, self._classes = recipe, devices, data.num_classes
        self._column = metric_of(data.task).column
        self.images = min(recipe.track_bearing_images, len(data.validation))
        order = torch.randperm(len(data.validation), generator=generator(0, "bearing"))
        sample = data.validation.at(order[: self.images].sort().values)
        place: dict[str, Any] = {"device": devices.device, "rank": devices.rank, "world_size": devices.world_size}
        self._batches = batches_of(recipe, replace(data, validation=sample), "validation", **place)
        train = batches_of(recipe, data, "train", **place)
        own = -(-self.images // (recipe.data.batch_size * devices.world_size))
        self._calibration = train.sample(min(own, recipe.pruning.recalibrate_batches), 0)
        whole_batch = recipe.data.batch_size * devices.world_size
        states = 1 + len(recipe.track_bearing_sparsities) + len(recipe.track_bearing_bits)
        again = len(self._calibration) * whole_batch if has_batch_norm(model) else 0
        looked = states * (self.images + again) + FORWARDS * recipe.accumulate * whole_batch
        trained = len(train) // recipe.accumulate * recipe.accumulate * whole_batch
        self.plan = plan(recipe.epochs, trained, looked, recipe.track_bearing_every)
        self._critical: dict[str, Any] = {}

    def due(self, epoch: int) -> bool:
        """Whether the network is looked at after this many epochs."""
        return (self._recipe.epochs - epoch) % self.plan.every == 0

    def around_step(self, model: nn.Module, batch: Batch, rate: float, step: Callable[[], Tensor]) -> Tensor:
        """Take the epoch's last step, and find its critical learning rate; returns what the step does."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        before = [parameter.detach().clone() for parameter in parameters]
        found = step()
        with torch.no_grad():
            after = [parameter.detach().clone() for parameter in parameters]
            try:
                critical = critical_factor(lambda s: self._loss(model, batch, parameters, before, after, s))
                self._critical = {
                    "critical_learning_rate": rate * critical.factor, "critical_learning_rate_open": critical.open,
                }  # fmt: skip
            except ValueError:  # the loss is not finite, of which the run itself will speak
                self._critical = {}
            finally:
                for parameter, values in zip(parameters, after, strict=True):
                    parameter.copy_(values)
        return found

    def _loss(
        self,
        model: nn.Module,
        batch: Batch,
        parameters: Sequence[Tensor],
        before: list[Tensor],
        after: list[Tensor],
        s: float,
    ) -> float:
        for parameter, start, end in zip(parameters, before, after, strict=True):
            parameter.copy_(end if s == 1 else torch.lerp(start, end, s))
        total = torch.zeros((), dtype=torch.float64, device=self._devices.device)
        with untouched(model), _by_the_batch(model):
            for images, targets in batch:
                with self._devices.autocast():
                    outputs = model(images)
                settings = {name: getattr(self._recipe, name) for name in ("label_smoothing", "dice_weight")}
                total += task_loss(outputs, targets, **settings).double() / len(batch)
        return float(sum_over_ranks(total)) / self._devices.world_size

    @torch.no_grad()
    def measure(self, model: nn.Module) -> dict[str, Any]:
        """What goes into the epoch's row of `metrics.jsonl`."""
        recipe = self._recipe
        row: dict[str, Any] = {"bearing_images": self.images}
        with untouched(model):
            names = ["bearing_dense", *(f"bearing_sparsity_{one:g}" for one in recipe.track_bearing_sparsities)]
            for name, _ in zip(names, sweep(model, (0.0, *recipe.track_bearing_sparsities)), strict=True):
                row[name] = self._quality(model)
            for bits in recipe.track_bearing_bits:
                with self._rounded(model, bits):
                    row[f"bearing_bits_{bits}"] = self._quality(model)
        critical, self._critical = self._critical, {}
        return row | critical

    def _quality(self, model: nn.Module) -> float:
        with self._devices.autocast():
            recalibrate(model, self._calibration, device=self._devices.device)
        found = evaluate(model, self._batches, self._classes, autocast=self._devices.autocast())
        return float(getattr(found, self._column))

    @contextmanager
    def _rounded(self, model: nn.Module, bits: int) -> Iterator[None]:
        """Weights as whole numbers of so many bits; put back, and BatchNorm's statistics with them."""
        entries = [entry for entry in select(model, PRUNABLE).chosen if entry.name in self._chosen]
        tensors = [entry.parameter for entry in entries]
        saved = [(tensor, tensor.detach().clone()) for tensor in [*tensors, *model.buffers()]]
        try:
            for entry in entries:
                quantize(entry.parameter, f"int{bits}", scaling=PerChannel().of(entry), out=entry.parameter.detach())
            yield
        finally:
            for tensor, values in saved:
                tensor.copy_(values)


@contextmanager
def _by_the_batch(model: nn.Module) -> Iterator[None]:
    """BatchNorm by the statistics of the batch, as the step saw it; inside `untouched`, which puts all back."""
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.training = True
    yield

"""The optimizer of a run with its levers, as the recipe names them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from trimtab.levers import Handle, attach
from trimtab.levers.protocol import call
from trimtab.observe import ActivationStatistics, AttentionStatistics
from trimtab.optimizers import SpikeGuard
from trimtab.optimizers.two_pass import TwoPassOptimizer
from trimtab.penalties import Penalty
from trimtab.precision import Binarize, Compensate, LowPrecision
from trimtab.registry import find
from trimtab.runs.groups import grouped, scale_rates
from trimtab.runs.precision_section import build_precision

if TYPE_CHECKING:
    from pathlib import Path

    from trimtab.observe import GradientTracker, Meter
    from trimtab.runs.recipe import Recipe


@dataclass(frozen=True)
class Steering:
    """The optimizer of a run with everything attached to it."""

    optimizer: torch.optim.Optimizer
    base: torch.optim.Optimizer
    wrapper: TwoPassOptimizer | None
    levers: tuple[Any, ...]
    precision: tuple[LowPrecision | Compensate | Binarize, ...]
    handle: Handle
    parts: Mapping[str, Any]
    """Optimizer, wrapper and levers by their names in the recipe."""

    def describe(self) -> dict[str, dict[str, float | None]]:
        """What the levers tell of themselves for the run's record, by name; those that tell nothing are not in it."""
        told = {
            name: lever.describe() for name, lever in self.parts.items() if callable(getattr(lever, "describe", None))
        }
        return {
            name: {key: value if math.isfinite(value) else None for key, value in numbers.items()}
            for name, numbers in told.items()
            if numbers
        }

    def outlook(self, remaining: float) -> list[str]:
        """What the levers expect of a run with so much left of the schedule, each behind its name."""
        told = {
            name: lever.outlook(remaining)
            for name, lever in self.parts.items()
            if callable(getattr(lever, "outlook", None))
        }
        return [f"{name}: {text}" for name, text in told.items() if text]

    def see(self, loss: Tensor) -> None:
        """Tell the levers that ask for it the loss of the step to come."""
        for lever in self.levers:
            call(lever, "see", loss)

    @property
    def guards(self) -> tuple[SpikeGuard, ...]:
        """Those of the levers that make alarms."""
        return tuple(lever for lever in self.levers if isinstance(lever, SpikeGuard))

    @property
    def penalties(self) -> tuple[Penalty, ...]:
        """Those of the levers that are terms of the loss."""
        return tuple(lever for lever in self.levers if isinstance(lever, Penalty))

    @property
    def skipped(self) -> int:
        """Steps skipped so far because a gradient held inf or NaN; those that a GradScaler skips are not among them."""
        return self.handle.skipped + (0 if self.wrapper is None else self.wrapper.skipped)

    @property
    def skipped_in_a_row(self) -> int:
        """Of these, the last ones without a step in between."""
        return max(self.handle.skipped_in_a_row, 0 if self.wrapper is None else self.wrapper.skipped_in_a_row)


def steer(
    recipe: Recipe,
    model: nn.Module,
    tracker: GradientTracker | None = None,
    meters: Sequence[Meter] = (),
    *,
    folder: Path | None = None,
    reducing: nn.Module | None = None,
    steps_per_epoch: int | None = None,
) -> Steering:
    """Build the optimizer for `model` with the recipe's levers attached in their order, the rounding last.

    A tracker acts before them all, by a handle of its own: its state decides nothing about the network, so a run goes on
    with and without it. A step whose gradients hold inf or NaN is skipped, on every rank; the tracker sees it.

    Args:
        recipe: what to do.
        model: the network itself.
        tracker: watches the gradients.
        meters: look at the steps with it; it records what they signal. A guard judges those of activations and attention.
        folder: the run folder, into which rounding is metered.
        reducing: the DistributedDataParallel model around it, whose reduction `precision.before_reduce` hooks.
        steps_per_epoch: handed to the levers that name it, with `total_steps` of the whole run; those that need it are refused
            without.

    Raises:
        ValueError: a lever does not fit the run, such as phases for which it is too short.
    """
    handed: dict[str, Any] = {"seed": recipe.seed}
    if steps_per_epoch is not None:
        handed |= {"total_steps": steps_per_epoch * recipe.epochs, "steps_per_epoch": steps_per_epoch}
    base = recipe.build(recipe.base_name, grouped(model, recipe.groups), model=model, **handed)
    scale_rates(base, recipe.groups)
    acting = [name for name in recipe.used if find(name).home != "optimizer"]
    wrapping = [name for name in acting if find(name).home == "wrapper"]
    wrapper = recipe.build(wrapping[0], base, model=model, **handed) if wrapping else None
    optimizer = base if wrapper is None else wrapper
    if wrapper is not None:
        wrapper.on_nonfinite = "skip"
    parts = {recipe.base_name: base, **({wrapping[0]: wrapper} if wrapping else {})}
    levers = {name: recipe.build(name, **handed) for name in acting if name not in wrapping}
    chain = tuple(levers.values())
    precision = build_precision(recipe.precision, recipe.seed, folder, handed.get("total_steps"))
    if tracker is not None:
        attach(optimizer, tracker, *meters, model=model)
        tracker.watch((*meters, *(lever for lever in chain if hasattr(lever, "signals")), *precision))
        for guard in (lever for lever in chain if isinstance(lever, SpikeGuard)):
            guard.watch(*(meter for meter in meters if isinstance(meter, ActivationStatistics | AttentionStatistics)))
    named = reducing if reducing is not None and recipe.precision.before_reduce else model
    handle = attach(optimizer, *chain, *precision, model=named, on_nonfinite="skip")
    return Steering(optimizer, base, wrapper, chain, precision, handle, {**parts, **levers})

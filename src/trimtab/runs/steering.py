"""Named ways of training: each is a base optimizer, at most one penalty and at most one sharpness-aware wrapper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from trimtab import gradients, levers
from trimtab.gradients import ClipNorm, GradientTransform
from trimtab.optimizers import ASAM, SAM, CrAM
from trimtab.penalties import L1, HoyerSquare, VarianceAmplifier
from trimtab.penalties.base import Penalty
from trimtab.precision import Compensate, LowPrecision
from trimtab.runs.methods import METHODS
from trimtab.runs.precision_section import build_precision

if TYPE_CHECKING:
    from pathlib import Path

    from trimtab.observe import GradientTracker
    from trimtab.runs.recipe import Recipe

Wrapper = SAM | ASAM | CrAM


@dataclass(frozen=True)
class Steering:
    """The optimizer of a run with everything attached to it."""

    optimizer: torch.optim.Optimizer
    base: torch.optim.Optimizer
    wrapper: Wrapper | None
    penalty: Penalty | None
    transforms: tuple[GradientTransform, ...]
    precision: tuple[LowPrecision | Compensate, ...]
    handle: levers.Handle

    @property
    def skipped(self) -> int:
        """Steps skipped so far because a gradient held inf or NaN; those that a GradScaler skips are not among them."""
        return self.handle.skipped + (0 if self.wrapper is None else self.wrapper.skipped)

    @property
    def skipped_in_a_row(self) -> int:
        """Of these, the last ones without a step in between."""
        return max(self.handle.skipped_in_a_row, 0 if self.wrapper is None else self.wrapper.skipped_in_a_row)


def base_optimizer(recipe: Recipe, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The plain optimizer that the recipe's method builds on."""
    name = METHODS[recipe.method].optimizer or recipe.optimizer
    if name == "adamw":
        section = recipe.adamw
        return torch.optim.AdamW(
            parameters, lr=section.lr, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
        )
    plain = recipe.sgd
    return torch.optim.SGD(
        parameters, lr=plain.lr, momentum=plain.momentum, weight_decay=plain.weight_decay, nesterov=plain.nesterov
    )


def build_penalty(recipe: Recipe) -> Penalty | None:
    """The penalty of the recipe's method, or None."""
    match METHODS[recipe.method].penalty:
        case "var":
            return VarianceAmplifier(**recipe.var.model_dump())
        case "l1":
            return L1(strength=recipe.l1.strength)
        case "hoyer":
            return HoyerSquare(strength=recipe.hoyer.strength)
    return None


def build_wrapper(recipe: Recipe, base: torch.optim.Optimizer, model: nn.Module) -> Wrapper | None:
    """The sharpness-aware wrapper of the recipe's method around `base`, or None."""
    name = METHODS[recipe.method].wrapper
    match name:
        case "sam":
            return SAM(base, rho=recipe.sam.rho, model=model)
        case "asam":
            return ASAM(base, rho=recipe.asam.rho, eta=recipe.asam.eta, model=model)
        case "cram" | "cram+":
            cram = recipe.cram
            return CrAM(
                base,
                rho=cram.rho,
                sparsities=cram.sparsities,
                sparse_grad=cram.sparse_grad,
                plus=name == "cram+",
                pattern=cram.pattern,
                seed=recipe.seed,
                model=model,
            )
    return None


def build_transforms(recipe: Recipe) -> tuple[GradientTransform, ...]:
    """The recipe's gradient transforms in its order, the clipping of the global norm last."""
    named = [gradients.create(name, **getattr(recipe, name).model_dump()) for name in recipe.transforms]
    return (*named, *([] if recipe.clip_norm is None else [ClipNorm(recipe.clip_norm)]))


def steer(
    recipe: Recipe,
    model: nn.Module,
    tracker: GradientTracker | None = None,
    *,
    folder: Path | None = None,
    reducing: nn.Module | None = None,
) -> Steering:
    """Build the optimizer for `model` as the recipe's method says; levers attached: penalty, transforms, clipping, rounding.

    A tracker acts before them all, by a handle of its own: its state decides nothing about the network, so a run goes on
    with and without it. A step whose gradients hold inf or NaN is skipped, on every rank; the tracker sees it.

    Args:
        recipe: what to do.
        model: the network itself.
        tracker: watches the gradients.
        folder: the run folder, into which rounding is metered.
        reducing: the DistributedDataParallel model around it, whose reduction `precision.before_reduce` hooks.
    """
    base = base_optimizer(recipe, [parameter for parameter in model.parameters() if parameter.requires_grad])
    wrapper = build_wrapper(recipe, base, model)
    penalty = build_penalty(recipe)
    optimizer = base if wrapper is None else wrapper
    if wrapper is not None:
        wrapper.on_nonfinite = "skip"
    transforms = build_transforms(recipe)
    precision = build_precision(recipe.precision, recipe.seed, folder)
    if tracker is not None:
        levers.attach(optimizer, tracker, model=model)
        tracker.watch((*transforms, *precision))
    named = reducing if reducing is not None and recipe.precision.before_reduce else model
    chain = (*([] if penalty is None else [penalty]), *transforms, *precision)
    handle = levers.attach(optimizer, *chain, model=named, on_nonfinite="skip")
    return Steering(optimizer, base, wrapper, penalty, transforms, precision, handle)

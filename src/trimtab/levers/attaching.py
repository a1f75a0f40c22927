"""`attach`: let levers act at an optimizer's steps."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from trimtab.levers.handle import Handle, handles_on, live
from trimtab.levers.nonfinite import Policy
from trimtab.levers.protocol import Lever, members
from trimtab.levers.wrappers import innermost, takes_closure


def attached(optimizer: torch.optim.Optimizer) -> tuple[Lever, ...]:
    """The levers at work on `optimizer`, of all handles, in the order in which they act.

    Example:
        >>> import trimtab
        >>> optimizer = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
        >>> with trimtab.attach(optimizer, trimtab.penalties.L1(0.5)):
        ...     attached(optimizer)
        (L1(strength=0.5, min_ndim=2),)
        >>> attached(optimizer)
        ()
    """
    return tuple(lever for handle in handles_on(innermost(optimizer)) for lever in members(handle.levers))


def show(optimizer: torch.optim.Optimizer) -> None:
    """Let the observers on `optimizer` see the gradients that stand, of a step that its wrapper skips."""
    base = innermost(optimizer)
    for handle in handles_on(base):
        handle.show(base)


def _taken(levers: Sequence[Lever]) -> tuple[Lever, torch.optim.Optimizer] | None:
    """A lever that another handle holds, and that handle's optimizer."""
    for handle in list(live):
        for known in members(handle.levers):
            if any(known is lever for lever in levers):
                return known, handle.optimizers[0]
    return None


def _check(levers: tuple[Lever, ...], optimizers: Sequence[torch.optim.Optimizer], on_nonfinite: str) -> None:
    for position, lever in enumerate(levers):
        if isinstance(lever, type) or not isinstance(lever, Lever):
            raise TypeError(f"lever {position} ({lever!r}) has no before_step, state_dict and load_state_dict")
    acting = list(members(levers))
    if twice := [lever for place, lever in enumerate(acting) if any(lever is other for other in acting[:place])]:
        raise ValueError(f"{twice[0]!r} is given twice; make another")
    if _taken(acting):
        gc.collect()  # a forgotten optimizer is part of a cycle with its hooks
    if found := _taken(acting):
        lever, optimizer = found
        raise ValueError(
            f"{lever!r} is attached already, to a {type(optimizer).__name__}; two would act, count and remember as one. "
            "Remove it there (Handle.remove), make another, or attach it once to all: attach([optimizer, ...], lever)"
        )
    for lever in acting:
        if len(optimizers) > 1 and (reason := getattr(lever, "one_optimizer", None)):
            raise ValueError(f"{lever!r} does not act on {len(optimizers)} optimizers at once: {reason}")
    if on_nonfinite == "skip":
        for optimizer in optimizers:
            if takes_closure(optimizer):
                raise ValueError(
                    f'on_nonfinite="skip" cannot undo a step of {type(optimizer).__name__}, which moves the weights while it '
                    'evaluates its closure; use "raise" or "pass"'
                )


def attach(optimizer: Any, *levers: Lever, model: nn.Module | None = None, on_nonfinite: Policy = "pass") -> Handle:
    """Let `levers` act just before every step of `optimizer`, in the order given.

    Order within a step: GradScaler's unscale, accumulation, all-reduce, then the levers, then the step, then `after_step` of
    the levers that have it. Works with any `torch.optim.Optimizer`, with `step(closure)`, with a fused optimizer under
    GradScaler, and with wrappers (SAM, ASAM, CrAM, accelerate's, Lookahead, schedule-free), whose inner optimizer takes the
    hook so that levers see the final gradients and unperturbed weights.

    With `step(closure)` the optimizer gets the closure's loss plus the value of the penalties attached: the objective that
    the gradients belong to. A lever that only observes is called at the first of several calls of the closure.

    Several optimizers (a GAN's, one per parameter in the backward pass): at the step of each, levers act on its parameters,
    those of the others show no gradient; norms and statistics are therefore of one optimizer's gradients. The step counts
    once when all have stepped, or when one steps again before the others.

    Args:
        optimizer: the optimizer to attach to, or a list of optimizers.
        levers: objects that follow `Lever`; each may be attached once.
        model: gives the parameters their names; needed when a lever selects by name. With a model, a parameter that is
            replaced later is noticed and named in a warning.
        on_nonfinite: what to do when a gradient holds inf or NaN before the levers act. "pass" (default [ours]): hand it on,
            warn once. "skip": no step; weights, moments and counts stay, only levers that observe see it. "raise":
            FloatingPointError. The decision is the same on every rank, at the price of a collective of one number per step
            ("skip", "raise").

    Returns:
        A `Handle` with `remove()`, `state_dict()` and `load_state_dict()`.

    Raises:
        TypeError: an argument is not an optimizer, is a wrapper that shows no hooks, or not a lever.
        ValueError: the optimizer does not hold the model's parameters; a lever is attached already, or does not fit several
            optimizers; "skip" with an optimizer that needs a closure (LBFGS).

    Example:
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, trimtab.penalties.L1(strength=1e-3))
        >>> net(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> handle.remove()
    """
    given = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    optimizers = list({id(inner): inner for inner in map(innermost, given)}.values())
    if len(optimizers) < len(given) or not given:
        raise ValueError(f"attach needs one optimizer or several different ones, got {optimizer!r}")
    _check(levers, optimizers, on_nonfinite)
    return Handle(optimizers, levers, model, on_nonfinite)

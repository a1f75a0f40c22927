"""Which optimizer takes the actual step, below whatever wraps it."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch

NAMES = ("base_optimizer", "optimizer", "_optimizer", "base", "inner_optimizer", "optim")
"""Where wrappers keep what they wrap: SAM; accelerate; Lightning; Lookahead and schedule-free."""


def _held(optimizer: Any) -> set[int] | None:
    groups = getattr(optimizer, "param_groups", None)
    return None if groups is None else {id(parameter) for group in groups for parameter in group["params"]}


def _inner(optimizer: Any) -> Any:
    """What `optimizer` wraps: an optimizer with the same parameters among its attributes, or None."""
    own = _held(optimizer)
    found: dict[str, Any] = {}
    for name, value in getattr(optimizer, "__dict__", {}).items():
        steps = isinstance(value, torch.optim.Optimizer) or (name in NAMES and hasattr(value, "param_groups"))
        if steps and value is not optimizer and own in (None, _held(value)):
            found[name] = value
    known = [found[name] for name in NAMES if name in found]
    others = {id(value): value for value in found.values()}
    return known[0] if known else next(iter(others.values())) if len(others) == 1 else None


def layers(optimizer: Any) -> Iterator[Any]:
    """The optimizer, what it wraps, what that wraps, and so on.

    Example:
        >>> from trimtab.optimizers import SAM
        >>> base = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
        >>> [type(layer).__name__ for layer in layers(SAM(base))]
        ['SAM', 'SGD']
    """
    seen: set[int] = set()
    while optimizer is not None and id(optimizer) not in seen:
        seen.add(id(optimizer))
        yield optimizer
        optimizer = _inner(optimizer)


def innermost(optimizer: Any) -> torch.optim.Optimizer:
    """The optimizer that takes the actual step: what a wrapper such as SAM, accelerate's or Lookahead holds, else itself.

    A wrapper is followed through the attribute that holds an optimizer with the same parameters, whatever its name.

    Raises:
        TypeError: there is no optimizer, or a wrapper without step hooks shows none inside.

    Example:
        >>> from trimtab.optimizers import SAM
        >>> base = torch.optim.SGD(torch.nn.Linear(2, 1).parameters(), lr=0.1)
        >>> innermost(SAM(base)) is base
        True
    """
    *_, found = layers(optimizer)
    name, outer = type(found).__name__, type(optimizer).__name__
    if not isinstance(found, torch.optim.Optimizer) and _held(found) is None:
        raise TypeError(f"attach needs a torch.optim.Optimizer first, got {outer}")
    if not isinstance(found, torch.optim.Optimizer) or not hasattr(found, "_optimizer_step_pre_hooks"):
        inside = "" if found is optimizer else f" (inside {outer})"
        raise TypeError(
            f"{name}{inside} has no step hooks, because its constructor does not call torch.optim.Optimizer.__init__, and "
            "none of its attributes is an optimizer with the same parameters; attach to the optimizer that takes the step "
            f"before {name} wraps it, or call super().__init__(params, defaults) in {name}.__init__"
        )
    return found


def takes_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step cannot do without a closure, which it calls several times.

    Example:
        >>> weight = [torch.nn.Parameter(torch.zeros(1))]
        >>> takes_closure(torch.optim.LBFGS(weight)), takes_closure(torch.optim.SGD(weight))
        (True, False)
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def refuse_state_elsewhere(what: str, optimizer: torch.optim.Optimizer) -> None:
    """ValueError where an optimizer inside steps a part of the parameters and keeps their state alone.

    So does torch's `ZeroRedundancyOptimizer` on several ranks. `what` says who does what with the state.

    Example:
        >>> refuse_state_elsewhere("Nobody forgets", torch.optim.SGD(torch.nn.Linear(2, 1).parameters()))
    """
    own = _held(optimizer) or set()
    for value in vars(optimizer).values():
        if isinstance(value, torch.optim.Optimizer) and (_held(value) or set()) < own:
            raise ValueError(
                f"{what} the optimizer's whole state, and each rank's {type(optimizer).__name__} keeps that of a part of the "
                f"weights alone ({len(_held(value) or ())} of {len(own)} tensors here); use {type(value).__name__} itself, or "
                "FSDP2 (fully_shard), whose state is of every weight"
            )

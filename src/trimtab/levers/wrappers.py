"""Which optimizer takes the actual step, below whatever wraps it."""

from __future__ import annotations

import inspect
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
    seen = {id(optimizer)}
    found = optimizer
    while (inner := _inner(found)) is not None and id(inner) not in seen:
        seen.add(id(inner))
        found = inner
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

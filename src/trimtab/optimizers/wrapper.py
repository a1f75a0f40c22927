"""An optimizer around another, whose groups, state and defaults are the other's own objects."""

from __future__ import annotations

import weakref
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.levers import CopiedWhole, layers, takes_closure
from trimtab.parameters.kinds import reason_against_dtype

_around: weakref.WeakKeyDictionary[torch.optim.Optimizer, weakref.ref[OptimizerWrapper]] = weakref.WeakKeyDictionary()


def wrapper_around(optimizer: torch.optim.Optimizer) -> OptimizerWrapper | None:
    """The wrapper that was last put around this optimizer and is still there.

    Example:
        >>> from trimtab.optimizers import SAM
        >>> base = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
        >>> wrapper = SAM(base)
        >>> wrapper_around(base) is wrapper
        True
    """
    found = _around.get(optimizer)
    return None if found is None else found()


def _check_dtypes(name: str, groups: list[dict[str, Any]]) -> None:
    """TypeError for a trained parameter whose gradient has no real norm."""
    for number, group in enumerate(groups):
        for position, parameter in enumerate(group["params"]):
            if parameter.requires_grad and (reason := reason_against_dtype(parameter)):
                raise TypeError(
                    f"{name} perturbs real floating-point weights; parameter {position} of group {number}, shape "
                    f"{tuple(parameter.shape)}: {reason}. Train it with an optimizer of its own"
                )


class OptimizerWrapper(CopiedWhole):
    """Shares everything with its base optimizer but the step."""

    base_optimizer: torch.optim.Optimizer

    def __init__(self, base: torch.optim.Optimizer, model: nn.Module | None) -> None:
        name = type(self).__name__
        if not isinstance(base, torch.optim.Optimizer):
            raise TypeError(
                f"{name} wraps an optimizer instance such as torch.optim.SGD(model.parameters(), lr=0.1), "
                f"got {base.__name__ if isinstance(base, type) else type(base).__name__}"
            )
        for layer in layers(base):
            kind = type(base).__name__ + (f" around {type(layer).__name__}" if layer is not base else "")
            if isinstance(layer, OptimizerWrapper):
                raise TypeError(f"{name} cannot wrap {kind}, which already takes two gradients per step")
            if takes_closure(layer):
                raise TypeError(f"{name} cannot wrap {kind}, whose step needs a closure of its own")
        if model is not None and not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module or None, got {type(model).__name__}")
        held = {id(parameter) for group in base.param_groups for parameter in group["params"]}
        if model is not None and not any(id(parameter) in held for parameter in model.parameters()):
            raise ValueError(
                f"the optimizer {type(base).__name__} holds none of the parameters of {type(model).__name__}; "
                "build it from this model's parameters (after moving or copying the model)"
            )
        _check_dtypes(name, base.param_groups)
        super().__init__(base.param_groups, base.defaults)
        self.base_optimizer = base
        self.model = model
        _around[base] = weakref.ref(self)

    # The base optimizer's own objects, looked up each time: it replaces them when it loads a state.

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        if "base_optimizer" in self.__dict__:  # not while torch's constructor runs
            self.base_optimizer.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:
        """The base optimizer's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        if "base_optimizer" in self.__dict__:
            self.base_optimizer.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer."""
        if "base_optimizer" in self.__dict__:
            self.base_optimizer.add_param_group(param_group)
            _check_dtypes(type(self).__name__, self.param_groups)

    def zero_grad(self, set_to_none: bool = True) -> None:  # noqa: FBT001, FBT002  (torch's signature)
        """Clear the gradients of all parameters."""
        self.base_optimizer.zero_grad(set_to_none)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        _around[self.base_optimizer] = weakref.ref(self)

    def own_state(self) -> dict[str, Any]:
        """What it holds beside the base optimizer: plain numbers and tensors."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` gave."""

    def train(self) -> None:
        """Hand `train()` on to a base optimizer that has it (schedule-free)."""
        if callable(switch := getattr(self.base_optimizer, "train", None)):
            switch()

    def eval(self) -> None:
        """Hand `eval()` on to a base optimizer that has it (schedule-free)."""
        if callable(switch := getattr(self.base_optimizer, "eval", None)):
            switch()

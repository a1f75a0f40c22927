"""What SAM, ASAM and CrAM share: a step of two gradients around any `torch.optim` optimizer."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.collectives import local_part, sum_over_shards
from trimtab.kinds import reason_against_dtype
from trimtab.optimizers.second_pass import RandomState, statistics_kept, weights_kept

TINY = 1e-12  # added to gradient norms before dividing, as SAM's authors do
EXTRA = "two_pass"


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that exist (the parts on this rank)."""
    return [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]


def global_norm(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> float:
    """L2 norm over all tensors together, summed in float64 over tensors and shards; 0.0 for none."""
    if not tensors:
        return 0.0
    norms: list[Tensor] = [torch.empty(0)] * len(tensors)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(position)
    for (_, dtype), positions in kinds.items():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        block = torch._foreach_norm([tensors[position] for position in positions], dtype=wide)
        for position, norm in zip(positions, block, strict=True):
            norms[position] = norm if len(kinds) == 1 else norm.to(tensors[0].device, torch.float64)
    rows = torch.stack(norms).to(torch.float64).square_().unsqueeze_(1)
    return math.sqrt(float(sum_over_shards(rows, parameters).sum()))


def _check_dtypes(name: str, groups: list[dict[str, Any]]) -> None:
    """TypeError for a trained parameter whose gradient has no real norm."""
    for number, group in enumerate(groups):
        for position, parameter in enumerate(group["params"]):
            if parameter.requires_grad and (reason := reason_against_dtype(parameter)):
                raise TypeError(
                    f"{name} perturbs real floating-point weights; parameter {position} of group {number}, shape "
                    f"{tuple(parameter.shape)}: {reason}. Train it with an optimizer of its own"
                )


class TwoPassOptimizer(torch.optim.Optimizer):
    """A wrapper that takes the base optimizer's step with a gradient from perturbed weights.

    Parameter groups, state and defaults are the base optimizer's own objects, so schedulers may act on either of them.
    Subclasses say how to perturb (`_perturb`) and how the final gradient is formed (`_final_gradient`).
    """

    base_optimizer: torch.optim.Optimizer

    def __init__(self, base: torch.optim.Optimizer, model: nn.Module | None) -> None:
        name = type(self).__name__
        if not isinstance(base, torch.optim.Optimizer):
            raise TypeError(
                f"{name} wraps an optimizer instance such as torch.optim.SGD(model.parameters(), lr=0.1), "
                f"got {base.__name__ if isinstance(base, type) else type(base).__name__}"
            )
        if isinstance(base, TwoPassOptimizer):
            raise TypeError(f"{name} cannot wrap {type(base).__name__}, which already takes two gradients per step")
        closure = inspect.signature(base.step).parameters.get("closure")
        if closure is not None and closure.default is inspect.Parameter.empty:
            raise TypeError(f"{name} cannot wrap {type(base).__name__}, whose step needs a closure of its own")
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
        self.steps = 0

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

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        self.base_optimizer.zero_grad(set_to_none)

    def _perturb(self, parameters: list[Tensor], norm: float) -> Any:
        """Move the weights in place; what is returned comes back to `_final_gradient`."""
        raise NotImplementedError

    def _final_gradient(self, parameters: list[Tensor], memory: Any) -> None:
        """Turn the perturbed gradient, already unscaled, into the one of the step, in place."""

    def _touched(self) -> list[Tensor]:
        """Parameters that are trained, each once."""
        held = {id(p): p for group in self.param_groups for p in group["params"] if p.requires_grad}
        for position, parameter in enumerate(held.values()):
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"{type(self).__name__} needs dense gradients, parameter {position} of shape "
                    f"{tuple(parameter.shape)} has one of layout {parameter.grad.layout}; use sparse=False"
                )
        return list(held.values())

    def _norm_or_none(self, parameters: list[Tensor]) -> float | None:
        """Norm of all gradients, or None when one of them holds inf or NaN."""
        holders = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = gradients_of(holders)
        norm = global_norm(gradients, holders)
        if math.isfinite(norm):
            return norm
        bad = [(~gradient.isfinite()).sum().to(torch.float32) for gradient in gradients]
        rows = torch.stack([count.to(bad[0].device) for count in bad]).unsqueeze(1)
        return norm if float(sum_over_shards(rows, holders).sum()) == 0 else None

    def step(
        self,
        closure: Callable[[], Any] | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
        before_step: Callable[[], Any] | None = None,
    ) -> Any:
        """Take one step: gradient, perturbed gradient, weights put back, base optimizer's step.

        Args:
            closure: clears the gradients, computes the loss (in micro-batches if wanted), calls `backward` and returns
                the loss. It runs twice and must see the same data both times.
            grad_scaler: when given, the closure calls `grad_scaler.scale(loss).backward()`. Both passes are unscaled
                here; the step is skipped when either has inf or NaN. Calling `grad_scaler.update()` stays with you.
            before_step: called once, when the final gradient stands and the weights are back; the place for
                `clip_grad_norm_`. Levers attached to this optimizer act after it.

        Returns:
            What the first call of the closure returned: the loss at the unperturbed weights.

        Raises:
            TypeError: no closure.
            ValueError: a gradient is sparse.
            FloatingPointError: a gradient has inf or NaN and there is no grad_scaler. The weights are as before.
        """
        name = type(self).__name__
        if not callable(closure):
            raise TypeError(
                f"{name}.step needs a closure that clears the gradients, computes the loss, calls backward and returns "
                f"the loss, because it takes two gradients; got {closure!r}"
            )
        scaler = grad_scaler if grad_scaler is not None and grad_scaler.is_enabled() else None
        random_state = RandomState(p.device for group in self.param_groups for p in group["params"])
        with torch.enable_grad():
            loss = closure()
        with torch.no_grad():
            parameters = self._touched()
            if scaler is not None and (gradients := gradients_of(parameters)):
                torch._foreach_mul_(gradients, 1.0 / scaler.get_scale())
            norm = self._norm_or_none(parameters)
            if norm is None:
                return self._without_step(loss, scaler, "gradient")
            with weights_kept([local_part(parameter) for parameter in parameters]):
                memory = self._perturb(parameters, norm)
                torch.clear_autocast_cache()  # inside an outer autocast, casts of the unperturbed weights are cached
                with statistics_kept(self.model), random_state.replayed(), torch.enable_grad():
                    closure()
            torch.clear_autocast_cache()
            self._touched()
            if scaler is not None:
                scaler.unscale_(self.base_optimizer)
            if self._norm_or_none(parameters) is None:
                return self._without_step(loss, scaler, "gradient at the perturbed weights")
            self._final_gradient(parameters, memory)
            del memory
        if before_step is not None:
            before_step()
        if scaler is None:
            self.base_optimizer.step()
        else:
            scaler.step(self.base_optimizer)
        self.steps += 1
        return loss

    def _without_step(self, loss: Any, scaler: torch.amp.GradScaler | None, which: str) -> Any:
        if scaler is None:
            raise FloatingPointError(
                f"{type(self).__name__}: the {which} holds inf or NaN after {self.steps} steps; the weights are as "
                "before this step. Lower the learning rate or rho, or pass grad_scaler= in mixed precision"
            )
        scaler.step(self.base_optimizer)  # finds the inf, skips, and remembers it for scaler.update()
        return loss

    def _own_state(self) -> dict[str, Any]:
        return {"method": type(self).__name__, "steps": self.steps}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state, and under "two_pass" the step count (and CrAM's generator state)."""
        return {**self.base_optimizer.state_dict(), EXTRA: self._own_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            ValueError: it comes from another method, or from a bare optimizer (load that into `base_optimizer`).
        """
        name, own = type(self).__name__, state_dict.get(EXTRA)
        if own is None:
            raise ValueError(
                f"this state has no {EXTRA!r} entry, so it is not of {name}; to start {name} from a bare optimizer's "
                "state, load it into .base_optimizer"
            )
        if own["method"] != name:
            raise ValueError(f"this state is of {own['method']}, it cannot be loaded into {name}")
        self.base_optimizer.load_state_dict({key: value for key, value in state_dict.items() if key != EXTRA})
        self._load_own_state(own)

    def __getstate__(self) -> dict[str, Any]:
        hooks = ("_optimizer_", "_zero_grad_profile", "_warned_")
        return {key: value for key, value in self.__dict__.items() if not key.startswith(hooks) and key != "step"}

    def _settings(self) -> str:
        return ""

    def __repr__(self) -> str:
        groups = len(self.param_groups)
        return (
            f"{type(self).__name__}({type(self.base_optimizer).__name__} with {groups} group{'s'[: groups != 1]}, "
            f"{self._settings()})"
        )


def non_negative(name: str, value: object) -> float:
    """`value` as a float when it is a finite number of 0 or more, else ValueError."""
    number = float(value) if not isinstance(value, bool) and isinstance(value, Real) else math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}")
    return number

"""The lever protocol and `attach`: how a method acts on a training run without owning its loop.

A lever is called once per optimizer step, just before the step, with the gradients that the step will use: unscaled,
accumulated and reduced. `attach` hooks it to any `torch.optim.Optimizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from trimtab.collectives import local_part
from trimtab.parameters import Entry, entries, with_names


@runtime_checkable
class Lever(Protocol):
    """An object that acts on gradients or weights just before an optimizer's step.

    `state_dict` holds plain tensors, numbers, strings, lists and dicts only, so that `torch.load(weights_only=True)`
    and JSON + safetensors can carry it.

    Three more methods are called where a lever has them:

    * `after_step(parameters)`: when the optimizer has stepped; not for a step that `GradScaler` skipped.
    * `bind(optimizer, model, parameters)`: by `attach`, with the optimizer that takes the step, the model given to
      `attach` (or None) and the parameters that `before_step` will get.
    * `unbind()`: by `Handle.remove`.
    """

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Act on the gradients (`entry.parameter.grad`) of the optimizer's parameters, in place."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on as if it had not stopped."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the state over; raise ValueError when it does not fit."""


def innermost(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer that takes the actual step: `base_optimizer` of a wrapper such as SAM, else itself."""
    while isinstance(inner := getattr(optimizer, "base_optimizer", None), torch.optim.Optimizer):
        optimizer = inner
    return optimizer


def _unscale_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Undo a GradScaler's factor where a fused kernel would have done it; return False when the step will be skipped.

    `GradScaler.step` leaves the division to optimizers that support it: it sets `grad_scale` and `found_inf` on them and
    calls `step`. Levers must see true gradients, so the division is done here and `grad_scale` cleared.
    """
    scale = getattr(optimizer, "grad_scale", None)
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is not None and bool(found_inf.item()):
        return False
    if scale is not None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    gradient = local_part(parameter.grad)
                    gradient.div_(scale.to(gradient.device))
        optimizer.grad_scale = None  # type: ignore[attr-defined]
    return True


def _call(lever: Lever, method: str, *arguments: Any) -> None:
    """Call a method that a lever need not have."""
    if callable(found := getattr(lever, method, None)):
        found(*arguments)


class Handle:
    """What `attach` returns: removes the levers again and carries their state.

    Works as a context manager that removes the levers at its end.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, levers: tuple[Lever, ...], model: nn.Module | None) -> None:
        self.levers = levers
        self._optimizer = innermost(optimizer)
        self._model = model
        self._known_ids: list[int] = []
        self._entries: list[Entry] = []
        self._applied = False
        parameters = self._current_entries()
        self._bound: list[Lever] = []
        try:
            for lever in levers:
                _call(lever, "bind", self._optimizer, model, parameters)
                self._bound.append(lever)
        except BaseException:
            self._unbind()
            raise
        self._hooks = (
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        )

    def _current_entries(self) -> list[Entry]:
        ids = [id(parameter) for group in self._optimizer.param_groups for parameter in group["params"]]
        if ids != self._known_ids:
            self._entries = (
                entries(self._optimizer) if self._model is None else with_names(self._optimizer, self._model)
            )
            self._known_ids = ids
        return self._entries

    def _apply(self) -> None:
        if not _unscale_fused(self._optimizer):
            return
        parameters = self._current_entries()
        for lever in self.levers:
            lever.before_step(parameters)
        self._applied = True

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._applied = False
        # args[0] is the optimizer itself: torch hands the hook the arguments of the unbound `step`.
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._apply()
            return None
        # The step computes its gradients by this closure, so the levers act after each of its calls.
        wrapped = self._after(closure)
        if "closure" in kwargs:
            return args, {**kwargs, "closure": wrapped}
        return (args[0], wrapped, *args[2:]), kwargs

    def _after(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def closure_and_levers() -> Any:
            loss = closure()
            with torch.no_grad():
                self._apply()
            return loss

        return closure_and_levers

    @torch.no_grad()
    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._applied:
            parameters = self._current_entries()
            for lever in self.levers:
                _call(lever, "after_step", parameters)

    def _unbind(self) -> None:
        while self._bound:
            _call(self._bound.pop(), "unbind")

    def remove(self) -> None:
        """Detach the levers; calling it again does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._unbind()

    def state_dict(self) -> dict[str, Any]:
        """State of every lever, in order."""
        return {"levers": [{"type": type(lever).__name__, "state": lever.state_dict()} for lever in self.levers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave; ValueError when the levers differ in number or type."""
        saved = [item["type"] for item in state["levers"]]
        present = [type(lever).__name__ for lever in self.levers]
        if saved != present:
            raise ValueError(
                f"the saved levers are {saved}, the attached ones {present}; attach the same levers in the same order"
            )
        for lever, item in zip(self.levers, state["levers"], strict=True):
            lever.load_state_dict(item["state"])

    def __enter__(self) -> Handle:
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        return f"Handle({type(self._optimizer).__name__}: {' -> '.join(map(repr, self.levers)) or 'no lever'})"


def attach(optimizer: torch.optim.Optimizer, *levers: Lever, model: nn.Module | None = None) -> Handle:
    """Let `levers` act just before every step of `optimizer`, in the order given.

    Order within a step: GradScaler's unscale, accumulation, all-reduce, then the levers, then the step, then `after_step` of
    the levers that have it. Works with any `torch.optim.Optimizer`, with `step(closure)`, with a fused optimizer under
    GradScaler, and with Trimtab's wrappers (SAM, ASAM, CrAM), whose base optimizer takes the hook so that levers see the
    unperturbed weights.

    Args:
        optimizer: the optimizer to attach to.
        levers: objects that follow `Lever`.
        model: gives the parameters their names; needed only when a lever selects by name.

    Returns:
        A `Handle` with `remove()`, `state_dict()` and `load_state_dict()`.

    Raises:
        TypeError: an argument is not an optimizer, or not a lever.
        ValueError: the optimizer does not hold the model's parameters.

    Example:
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, trimtab.penalties.L1(strength=1e-3))
        >>> net(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> handle.remove()
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"attach needs a torch.optim.Optimizer first, got {type(optimizer).__name__}")
    for position, lever in enumerate(levers):
        if isinstance(lever, type) or not isinstance(lever, Lever):
            raise TypeError(f"lever {position} ({lever!r}) has no before_step, state_dict and load_state_dict")
    return Handle(optimizer, levers, model)

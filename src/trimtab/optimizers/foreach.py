"""What plain optimizers of this room share: torch's conventions around one formula for lists of tensors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from trimtab.checks import below_one, flag, non_negative
from trimtab.collectives import local_part
from trimtab.levers import CopiedWhole

Lists = dict[str, list[Tensor]]
CACHED = 1 << 18
"""Elements that a CPU takes through a whole formula before the next ones, so that its cache holds them (measured)."""


def cached_runs(tensors: Sequence[Tensor]) -> list[slice]:
    """Runs of tensors of at most `CACHED` elements together, or of one alone; all of them together elsewhere than on a CPU.

    Example:
        >>> cached_runs([torch.ones(2**17), torch.ones(2**17), torch.ones(1), torch.ones(2**20)])
        [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    if not tensors:
        return []
    if tensors[0].device.type != "cpu":
        return [slice(0, len(tensors))]
    starts, filled = [0], 0
    for at, tensor in enumerate(tensors):
        size = tensor.numel()
        if filled + size > CACHED and at > starts[-1]:
            starts.append(at)
            filled = 0
        filled += size
    return [slice(first, last) for first, last in zip(starts, [*starts[1:], len(tensors)], strict=True)]


def learning_rate(lr: Any) -> float | Tensor:
    """`lr`, 0 or more: a number, or a tensor of one element as torch's schedulers and `torch.compile` take it."""
    if isinstance(lr, Tensor) and lr.numel() == 1:
        non_negative("lr", lr.item())
        return lr
    return non_negative("lr", lr)


def two_decays(betas: Any) -> tuple[float, float]:
    """Two decay rates, each in [0, 1)."""
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise ValueError(f"betas must be two numbers in [0, 1), got {betas!r}")
    return below_one("betas[0]", betas[0]), below_one("betas[1]", betas[1])


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """What the closure of a step gives, called with gradients on; None without one."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()


def adam_moments_(first: list[Tensor], second: list[Tensor], grads: list[Tensor], betas: tuple[float, float]) -> None:
    """`m <- b1 m + (1 - b1) g`, `v <- b2 v + (1 - b2) g^2`."""
    torch._foreach_lerp_(first, grads, 1 - betas[0])
    torch._foreach_mul_(second, betas[1])
    torch._foreach_addcmul_(second, grads, grads, 1 - betas[1])


def _here(tensors: list[Tensor]) -> list[Tensor]:
    """The parts of tensors on this rank; quick where none is sharded, every plain run's case."""
    plain = (Tensor, torch.nn.Parameter)
    return tensors if all(type(one) in plain for one in tensors) else [local_part(one) for one in tensors]


class ForeachOptimizer(CopiedWhole):
    """An optimizer whose formula takes lists of tensors of one device, dtype and step at once.

    A subclass names its states and writes `update`. Groups may set every default of their own; `foreach` False takes one tensor
    at a time (None and True: all together), `maximize` turns the gradients round. States are torch's: a `step` for each
    parameter, tensors like the parameter.
    """

    held: ClassVar[tuple[str, ...]] = ()
    """Names of the states, tensors of zeros like the parameter before the first step."""

    at_once: ClassVar[bool] = False
    """Whether `update` wants all tensors together on a CPU too; else it gets as many as the cache holds."""

    def __init__(
        self, params: Iterable[Any], defaults: dict[str, Any], *, foreach: bool | None, maximize: bool
    ) -> None:
        if foreach is not None:
            flag("foreach", foreach)
        super().__init__(params, {**defaults, "foreach": foreach, "maximize": flag("maximize", maximize)})

    @abstractmethod
    def update(
        self,
        group: dict[str, Any],
        step: int,
        params: list[Tensor],
        grads: list[Tensor],
        states: Lists,
        owners: Sequence[Tensor],
    ) -> None:
        """Change `params` and `states` in place; `grads` is not to be changed. `owners` are the parameters themselves."""

    def state_names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Those of `held` that this group needs."""
        return self.held

    def new_state(self, group: dict[str, Any], owner: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """States of these names before a parameter's first step: zeros like it."""
        return {name: torch.zeros_like(owner, memory_format=torch.preserve_format) for name in names}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what the closure gave."""
        loss = loss_of(closure)
        planned = [(group, self._alike(number, group)) for number, group in enumerate(self.param_groups)]
        for group, found in planned:  # before anything moves
            for (step, *_), (owners, _) in found.items():
                self.check(group, step, owners)
        if counted := [memory["step"] for _, found in planned for _, held in found.values() for memory in held]:
            torch._foreach_add_(counted, 1.0)
        for group, found in planned:
            names = self.state_names(group)
            for (step, *_), (owners, memories) in found.items():
                for part in self._together(group, owners):
                    some, held = owners[part], memories[part]
                    grads = _here([owner.grad for owner in some if owner.grad is not None])
                    if group["maximize"]:
                        grads = list(torch._foreach_neg(grads))
                    states = {name: _here([memory[name] for memory in held]) for name in names}
                    self.update(group, step, _here(some), grads, states, some)
        return loss

    def _together(self, group: dict[str, Any], owners: Sequence[Tensor]) -> list[slice]:
        if group["foreach"] is False:
            return [slice(at, at + 1) for at in range(len(owners))]
        return [slice(0, len(owners))] if self.at_once else cached_runs(owners)

    def check(self, group: dict[str, Any], step: int, owners: Sequence[Tensor]) -> None:
        """Refuse a step of these parameters before any moves."""

    def _alike(
        self, number: int, group: dict[str, Any]
    ) -> dict[tuple[Any, ...], tuple[list[Tensor], list[dict[str, Any]]]]:
        """Parameters with a gradient, and their states, by (step to come, device, dtype)."""
        found: dict[tuple[Any, ...], tuple[list[Tensor], list[dict[str, Any]]]] = {}
        names = self.state_names(group)
        for place, owner in enumerate(group["params"]):
            if owner.grad is None:
                continue
            if owner.is_complex() or owner.grad.layout is not torch.strided:
                self._refuse(number, place, group)
            memory = self.state[owner]
            if not memory:
                made = self.new_state(group, owner, names)  # all of it or nothing
                memory.update({"step": torch.zeros((), dtype=torch.float32), **made})
            key = int(memory["step"].item()) + 1, owner.device, owner.dtype
            owners, memories = found.setdefault(key, ([], []))
            owners.append(owner)
            memories.append(memory)
        return found

    def _refuse(self, number: int, place: int, group: dict[str, Any]) -> None:
        parameter = group["params"][place]
        name = group["param_names"][place] if "param_names" in group else f"parameter {place} of group {number}"
        if parameter.is_complex():
            raise TypeError(
                f"{type(self).__name__} acts on real parameters, {name} is {parameter.dtype}: a step by components would "
                "depend on the phase; give it to another optimizer"
            )
        raise TypeError(
            f"{type(self).__name__} acts on dense gradients, that of {name} has layout {parameter.grad.layout}; build the "
            "layer with sparse=False"
        )

"""What must stay as if the second forward and backward pass of a step had never happened.

Weights, running statistics of normalisation layers and the state of the random number generators are copied before
the perturbed pass and copied back after it, in place and bit for bit, whatever happens in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

from trimtab.collectives import local_part

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass(frozen=True)
class Climbed:
    """What lies between the two passes: how to come back, and what the method remembers."""

    back: ExitStack
    memory: Any
    scaled: bool
    finite: bool = True
    single: bool = False
    """Whether this step goes without the second pass."""


class EarlierGradients:
    """Notices whether gradients that stood before a closure are still part of those after it.

    An entry of one of them is replaced by a number too large for a gradient. A closure that clears the gradients, in whatever
    way, clears it too; one that adds to them leaves it.
    """

    def __init__(self, parameters: Iterable[Tensor]) -> None:
        self._marked: Tensor | None = None
        for parameter in parameters:
            gradient = None if parameter.grad is None else local_part(parameter.grad.detach())
            if gradient is None or gradient.layout is not torch.strided or not gradient.is_floating_point():
                continue
            if gradient.numel() and bool((gradient != 0).any()):
                self._marked, self._place = parameter, (0,) * gradient.ndim
                self._number = 2.0**14 if gradient.dtype == torch.float16 else 2.0**100
                self._old = gradient[self._place].clone()
                gradient[self._place] = self._number
                break

    def remain(self) -> bool:
        """Whether the mark is there; the entry gets its old number back."""
        if self._marked is None or self._marked.grad is None or self._marked.grad.layout is not torch.strided:
            return False
        gradient = local_part(self._marked.grad.detach())
        found = float(gradient[self._place])
        if not self._number / 2 <= found <= 2 * self._number:
            return False
        gradient[self._place] = self._old
        return True


@contextmanager
def weights_kept(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Copy the weights, and copy them back at the end: storage, views and every bit stay (no subtraction)."""
    saved = [parameter.detach().clone() for parameter in parameters]
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(parameters), saved)


def running_statistics(module: nn.Module) -> list[Tensor]:
    """The running statistics that `module` itself holds (BatchNorm, InstanceNorm and anything that names them so)."""
    held = module._buffers
    return [buffer for name in STATISTICS if (buffer := held.get(name)) is not None] if held else []


@contextmanager
def statistics_kept(model: nn.Module | None) -> Iterator[None]:
    """Let forward passes inside change no running statistics, while layers in train mode use those of their batch.

    With a model its statistics are copied and put back. Without one, a hook on every module's forward copies those of
    each module that runs; code inside `torch.compile` may bypass that hook, so a compiled model should be given.
    """
    saved: dict[int, tuple[Tensor, Tensor]] = {}

    def save(module: nn.Module) -> None:
        for buffer in running_statistics(module):
            if id(buffer) not in saved:
                saved[id(buffer)] = (buffer, buffer.detach().clone())

    def save_before_forward(module: nn.Module, arguments: Any) -> None:
        save(module)

    hook = None
    if model is None:
        hook = register_module_forward_pre_hook(save_before_forward)
    else:  # every buffer: running statistics, and what else a forward pass may move (spectral norm, counters)
        for buffer in model.buffers():
            saved.setdefault(id(buffer), (buffer, buffer.detach().clone()))
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
        if saved:
            with torch.no_grad():
                torch._foreach_copy_([buffer for buffer, _ in saved.values()], [copy for _, copy in saved.values()])


class RandomState:
    """The state of PyTorch's default generators, of the CPU and of the given devices, at the time of construction."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._cpu = torch.get_rng_state()
        self._others: dict[torch.device, Tensor] = {}
        for device in set(devices):
            if device.type not in ("cpu", "meta"):
                self._others[device] = torch.get_device_module(device).get_rng_state(device)

    def as_dict(self) -> dict[str, Tensor]:
        """The states by device, for saving."""
        return {"cpu": self._cpu, **{str(device): state for device, state in self._others.items()}}

    @classmethod
    def from_dict(cls, states: dict[str, Tensor]) -> RandomState:
        """What `as_dict` gave."""
        found = cls(())
        found._cpu = states["cpu"].cpu()
        found._others = {torch.device(name): state.cpu() for name, state in states.items() if name != "cpu"}
        return found

    def restore(self) -> None:
        """Set the generators back."""
        torch.set_rng_state(self._cpu)
        for device, state in self._others.items():
            torch.get_device_module(device).set_rng_state(state, device)

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Run the inside from this state (same dropout masks); afterwards go on from where things stood before it."""
        now = RandomState(self._others)
        self.restore()
        try:
            yield
        finally:
            now.restore()

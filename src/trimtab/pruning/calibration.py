"""Calibration data: a few batches of training inputs that show what reaches each layer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import chain, islice
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import whole
from trimtab.parameters import Entry
from trimtab.parameters.arguments import arguments_of_batch, moved
from trimtab.parameters.modes import modes_kept
from trimtab.parameters.wrappers import own_modules, unwrapped

Take = Callable[[Entry, nn.Module, Tensor], None]
"""What is done with one input of one layer: `take(entry, owner, inputs)`."""


class _Reached(Exception):  # noqa: N818 - no error
    """The last layer asked for has been reached: the rest of the network need not run."""


class Calibration:
    """Batches of inputs, held in memory since they are run more than once.

    Args:
        loader: yields inputs as for `recalibrate`: a tensor, a mapping of keyword arguments, or a tuple or list that starts
            with its inputs. Training data, never test data.
        batches: use only the first so many; default all.
        forward: runs the model on a batch of any other form, `forward(model, batch)`.

    Raises:
        ValueError: the loader is empty, or `batches` is not positive.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        batches: int | None = None,
        forward: Callable[[nn.Module, Any], object] | None = None,
    ) -> None:
        if batches is not None:
            whole("batches", batches, 1)
        with torch.random.fork_rng(devices=[]):  # iterating a DataLoader draws a number
            self.batches = list(islice(loader, batches))
        if not self.batches:
            raise ValueError("the loader is empty: calibration needs at least one batch of training inputs")
        self.forward = forward

    def run(self, model: nn.Module, batch: Any) -> Any:
        """What the model gives for one batch."""
        device = next(chain(model.parameters(), model.buffers())).device
        if self.forward is not None:
            return self.forward(model, moved(batch, device))
        positional, keywords = moved(arguments_of_batch(model, batch), device)
        return model(*positional, **keywords)

    def see(self, model: nn.Module, chosen: Sequence[Entry], take: Take, *, early: bool = False) -> None:
        """Hand every input that reaches the chosen layers to `take`; the model is in evaluation mode and left as it was.

        Args:
            model: the network.
            chosen: weights of linear layers and convolutions, each seen at all its owners.
            take: called in the order in which layers are reached.
            early: end each batch's pass where all chosen layers were reached once.

        Raises:
            ValueError: a layer is not reached by any batch (named).
        """
        model = unwrapped(model)
        reached: set[int] = set()
        waiting: set[int] = set()

        def hook_of(entry: Entry) -> Callable[..., None]:
            def hook(owner: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
                found = positional[0] if positional else keywords.get("input", keywords.get("x"))
                if not isinstance(found, Tensor) or not found.numel():
                    return
                reached.add(id(entry))
                with torch.inference_mode(mode=False), torch.no_grad():  # what is kept is changed after the pass
                    take(entry, owner, found)
                waiting.discard(id(entry))
                if early and not waiting:
                    raise _Reached

            return hook

        with ExitStack() as stack, torch.no_grad():
            stack.enter_context(undisturbed(model, training=False))
            for entry in chosen:
                for owner in entry.owners:
                    handle = owner.register_forward_pre_hook(hook_of(entry), with_kwargs=True)
                    stack.callback(handle.remove)
            for batch in self.batches:
                waiting.update(id(entry) for entry in chosen)
                try:
                    self.run(model, batch)
                except _Reached:
                    continue
        if lost := [entry.name for entry in chosen if id(entry) not in reached]:
            raise ValueError(
                f"the calibration data never reach {', '.join(lost[:5])}{' and more' if len(lost) > 5 else ''}: give "
                "batches that do, or leave the layer out with rule=Rule(exclude=...) (trimtab prune MODEL: --exclude)"
            )

    def order(self, model: nn.Module, chosen: Sequence[Entry]) -> tuple[list[Entry], bool]:
        """The chosen weights as the data reach them, and whether no batch reaches one twice (so that passes may end early)."""
        found: dict[int, Entry] = {}
        times: dict[int, int] = {}

        def take(entry: Entry, owner: nn.Module, inputs: Tensor) -> None:
            found.setdefault(id(entry), entry)
            times[id(entry)] = times.get(id(entry), 0) + 1

        self.see(model, chosen, take)
        return list(found.values()), max(times.values(), default=0) <= len(self.batches)


@contextmanager
def undisturbed(model: nn.Module, *, training: bool | None) -> Iterator[None]:
    """Run the model and leave buffers, modes, random state and `requires_grad` as they were.

    Args:
        model: the network.
        training: the mode to run in; None for the one that it is in.
    """
    saved = [(buffer, buffer.clone()) for buffer in model.buffers()]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    fast = torch.backends.mha.get_fastpath_enabled()
    devices = sorted({tensor.device.index for tensor, _ in trained if tensor.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # which would run layers without calling them
            with modes_kept(model, training=training):
                yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            for parameter, needed in trained:
                parameter.requires_grad_(needed)
            with torch.no_grad():
                for buffer, values in saved:
                    buffer.copy_(values)


def stages(model: nn.Module, ordered: Sequence[Entry], by: str) -> list[list[Entry]]:
    """The weights in steps: by "layer" each for itself, by "block" those of one block together, as published code does.

    Blocks are the children, of the class that most of them have, of the `ModuleList` or `Sequential` in which most of the
    weights lie; weights outside are steps of their own.
    """
    prefixes = _blocks(unwrapped(model), ordered) if by == "block" else []
    steps: dict[str, list[Entry]] = {}
    for entry in ordered:
        inside = next((prefix for prefix in prefixes if entry.name.startswith(f"{prefix}.")), entry.name)
        steps.setdefault(inside, []).append(entry)
    return list(steps.values())


def _blocks(model: nn.Module, ordered: Sequence[Entry]) -> list[str]:
    best: list[str] = []
    most = 0
    for prefix, module in own_modules(model):
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        kinds: dict[type[nn.Module], list[str]] = {}
        for label, child in module.named_children():
            if any(True for _ in child.children()):
                kinds.setdefault(type(child), []).append(f"{prefix}.{label}".removeprefix("."))
        for names in kinds.values():
            count = sum(any(entry.name.startswith(f"{name}.") for name in names) for entry in ordered)
            if len(names) > 1 and count > most:
                best, most = names, count
    return best

"""The parameters that the optimizers hold now, as the levers are handed them, and their gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from trimtab.collectives import local_part
from trimtab.levers.replaced import Whereabouts, warn_of_orphans
from trimtab.parameters import Entry, entries, with_names

Optimizer = torch.optim.Optimizer


class Listed:
    """The entries of several optimizers, listed anew when parameters were added, replaced or renamed.

    Args:
        optimizers: those that hold the parameters.
        model: whose names they get; None: by number.

    Attributes:
        lists: entries of each optimizer, as last listed.
        entries: all of them.
    """

    def __init__(self, optimizers: Sequence[Optimizer], model: nn.Module | None) -> None:
        self._optimizers, self._model = optimizers, model
        self.lists: list[list[Entry]] = []
        self.entries: list[Entry] = []
        self._known_ids: list[list[int]] = []
        self._whereabouts: Whereabouts | None = None

    def current(self) -> list[Entry]:
        """The entries now; a warning, once, where the model no longer holds a parameter."""
        moved = self._whereabouts is not None and self._whereabouts.moved()
        ids = [_ids(optimizer) for optimizer in self._optimizers]
        if moved and self._model is not None:
            if orphans := self._whereabouts.orphans(self.entries):  # type: ignore[union-attr]
                warn_of_orphans(orphans, self._model)
                self._whereabouts = None  # said once
            else:  # only wrapped or renamed
                self._known_ids = []
        if ids != self._known_ids:
            self.lists = _together(self._optimizers, self._model)
            # with one optimizer the very list, so that levers that judge a list once know it again
            joined = [entry for listed in self.lists for entry in listed]
            self.entries = self.lists[0] if len(self.lists) == 1 else joined
            lazy = any(is_lazy(entry.parameter) for entry in self.entries)  # asked again once it has a shape
            self._known_ids = [] if lazy else ids
            self._whereabouts = None if self._model is None else Whereabouts(self._model, self.entries)
        return self.entries

    def of_others(self, place: int) -> list[Tensor]:
        """Parameters whose gradients are not those of this optimizer's step."""
        if len(self.lists) == 1:
            return []
        own = {id(entry.parameter) for entry in self.lists[place]}
        return [entry.parameter for entry in self.entries if id(entry.parameter) not in own]


def _ids(optimizer: Optimizer) -> list[int]:
    return [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _together(optimizers: Sequence[Optimizer], model: nn.Module | None) -> list[list[Entry]]:
    """The entries of each optimizer; names that two of them share get the optimizer's place in front."""
    lists = [entries(optimizer) if model is None else with_names(optimizer, model) for optimizer in optimizers]
    names = [entry.name for listed in lists for entry in listed]
    if len(set(names)) == len(names):
        return lists
    return [
        [replace(entry, name=f"optimizer{place}.{entry.name}") for entry in listed]
        for place, listed in enumerate(lists)
    ]


@contextmanager
def without_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Take the gradients off inside, so that nobody acts on them."""
    kept = [(parameter, parameter.grad) for parameter in parameters if parameter.grad is not None]
    for parameter, _ in kept:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def unscale_fused(optimizer: Optimizer) -> bool:
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

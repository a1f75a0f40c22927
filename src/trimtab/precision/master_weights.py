"""Weights in full beside a model that holds rounded ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from trimtab.collectives import local_part
from trimtab.parameters import Entry


class MasterWeights:
    """Copies of weights by name, in their own dtype; of sharded ones this rank's part."""

    def __init__(self) -> None:
        self._copies: dict[str, Tensor] = {}
        self._in_model = True
        self.out = False
        """Whether `in_model` holds now."""

    @torch.no_grad()
    def keep(self, chosen: Sequence[Entry]) -> None:
        """Copy the weights, which will be rounded next."""
        for entry in chosen:
            weight = local_part(entry.parameter.detach())
            if entry.name in self._copies:
                self._copies[entry.name].copy_(weight)
            else:
                self._copies[entry.name] = weight.clone()
        self._in_model = False

    @torch.no_grad()
    def restore(self, chosen: Sequence[Entry]) -> None:
        """Put the copies into the model, unless they are there already."""
        if not self._in_model:
            for entry in chosen:
                if entry.name in self._copies:
                    local_part(entry.parameter.detach()).copy_(self._copies[entry.name])
        self._in_model = True

    @contextmanager
    def in_model(self, chosen: Sequence[Entry], again: Callable[[], None]) -> Iterator[None]:
        """Within the block, or the outer of several, the model holds the copies; `again` rounds what it holds at the end."""
        if self.out:
            yield
            return
        self.restore(chosen)
        self.out = True
        try:
            yield
        finally:
            self.out = False
            again()

    def state_dict(self) -> dict[str, Tensor]:
        """The copies."""
        return {name: copy.clone() for name, copy in self._copies.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the saved copies over; `restore` puts them into the model. ValueError when they do not fit."""
        saved = {name: tuple(weight.shape) for name, weight in state.items()}
        own = {name: tuple(copy.shape) for name, copy in self._copies.items()}
        if saved != own:
            raise ValueError(f"the saved master weights have the shapes {saved}, those of the model {own}")
        for name, copy in self._copies.items():
            copy.copy_(state[name])
        self._in_model = False

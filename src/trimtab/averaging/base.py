"""What every average of weights is: kept beside the network, swapped in for a while or for good."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from trimtab.averaging.kept import average_of, placed, whole
from trimtab.checks import one_of
from trimtab.collectives import local_part
from trimtab.parameters import Entry
from trimtab.tensors.passes import by_kind, widened

Buffers = Literal["recalibrate", "average"]
Update = Callable[[list[Tensor], list[Tensor], Any], None]
"""`update(averages, weights, number averaged before)`, as `torch.optim.swa_utils` makes them."""


class WeightAverage(ABC):
    """Keeps an average of all trained parameters, in float32 at least; the training itself does not see it.

    The average is taken when all levers have acted after the step, whatever their order. `finish` (called by a run after its
    last step, in a loop of your own through `Handle.finish`) puts the averages into the network for good. BatchNorm's
    statistics belong to other weights then: `buffers="recalibrate"` asks for their estimation anew (a run does it; in a loop
    of your own call `trimtab.pruning.recalibrate`), `buffers="average"` averages floating-point buffers as the weights.

    The updates are `torch.optim.swa_utils`' own. Its `AveragedModel` is not used: it copies the whole module, which a sharded
    one (FSDP2) does not bear, averages halves in their own precision, where steps of 0.1 % are lost, and keeps names and
    counts outside a run's checkpoint [ours].

    Attributes:
        averaged: how many steps are in the average.
        needs_recalibration: whether BatchNorm's statistics are to be estimated anew after `finish`.
    """

    def __init__(self, buffers: Buffers = "recalibrate") -> None:
        one_of("buffers", buffers, get_args(Buffers))
        self.buffers: Buffers = buffers
        self.averaged = 0
        self._averages: dict[str, Tensor] = {}
        self._entries: Sequence[Entry] = ()
        self._model: nn.Module | None = None
        self._pending = self._swapped = False

    @property
    def needs_recalibration(self) -> bool:
        """Whether BatchNorm's statistics are to be estimated anew after `finish`."""
        return self.buffers == "recalibrate"

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What changes the average; a saved state fits only where these agree."""

    @abstractmethod
    def update(self) -> Update | None:
        """What joins the weights of this step to the averages; None where the step does not count."""

    def bind(self, optimizer: torch.optim.Optimizer, model: nn.Module | None, parameters: Sequence[Entry]) -> None:
        """Remember what is averaged; called by `trimtab.attach`."""
        if self.buffers == "average" and model is None:
            raise ValueError('buffers="average" needs the network: attach(optimizer, lever, model=model)')
        self._entries, self._model = parameters, model

    def unbind(self) -> None:
        """Let the network go; the averages stay. Called by `Handle.remove`."""
        self._entries, self._model = (), None

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Nothing, but no step may be taken within `swapped`."""
        if self._swapped:
            raise RuntimeError(f"{self!r}: no step within swapped(); the averages stand in for the weights there")

    def after_step(self, parameters: Sequence[Entry]) -> None:
        """Remember that the weights moved; called by `trimtab.attach`."""
        self._entries, self._pending = parameters, True

    @torch.no_grad()
    def end_step(self) -> None:
        """Join the weights to the average, when all levers have acted; called by `trimtab.attach`."""
        if not self._pending:
            return
        self._pending = False
        update = self.update()
        if update is None:
            return
        current = self._current()
        new = [name for name in current if name not in self._averages]
        self._averages |= {name: average_of(current[name]) for name in new}
        names = [name for name in current if name not in new]  # a first value is its own average
        averages, weights = ([local_part(of[name]) for name in names] for of in (self._averages, current))
        for group in by_kind(weights):
            parts = [weights[at] for at in group]
            wide = parts if parts[0].is_complex() else widened(parts)
            update([averages[at] for at in group], wide, self.averaged)
        self.averaged += 1

    def _current(self) -> dict[str, Tensor]:
        """What is averaged, by name: trained parameters, and on request floating-point buffers."""
        found = {entry.name: entry.parameter.detach() for entry in self._entries}
        if self.buffers == "average" and self._model is not None:
            buffers = self._model.named_buffers()
            found |= {f"buffer {name}": buffer for name, buffer in buffers if buffer.is_floating_point()}
        return found

    def _put(self) -> None:
        for name, tensor in self._current().items():
            if name in self._averages:
                local_part(tensor).copy_(local_part(self._averages[name]))

    def _check_averaged(self) -> None:
        if not self.averaged:
            raise RuntimeError(f"{self!r} has averaged no step yet")

    @torch.no_grad()
    def finish(self, parameters: Sequence[Entry]) -> None:
        """Put the averages into the network for good; called after the last step (`Handle.finish`).

        Raises:
            RuntimeError: no step was averaged.
        """
        self._check_averaged()
        self._entries = parameters
        self._put()

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within the block the network holds the averages; weights and (with a model) all buffers come back bit for bit.

        Raises:
            RuntimeError: no step was averaged, the lever is not attached, or a block within a block.

        Example:
            >>> import torch, trimtab
            >>> weight = torch.nn.Parameter(torch.tensor([1.0]))
            >>> optimizer = torch.optim.SGD([weight], lr=1.0)
            >>> lever = trimtab.averaging.MeanWeights(start=0)
            >>> handle = trimtab.attach(optimizer, lever)
            >>> for _ in range(2):
            ...     weight.grad = torch.ones(1)
            ...     optimizer.step()
            >>> with lever.swapped():
            ...     inside = weight.item()
            >>> inside, weight.item()
            (-0.5, -1.0)
        """
        self._check_averaged()
        if self._swapped or not self._entries:
            why = "is swapped in already" if self._swapped else "is not attached; use trimtab.attach(optimizer, lever)"
            raise RuntimeError(f"{self!r} {why}")
        buffers = () if self._model is None else self._model.buffers()
        tensors = [*(local_part(entry.parameter.detach()) for entry in self._entries), *map(local_part, buffers)]
        kept = [tensor.clone() for tensor in tensors]
        self._swapped = True
        try:
            with torch.no_grad():
                self._put()
            yield
        finally:
            with torch.no_grad():
                for tensor, before in zip(tensors, kept, strict=True):
                    tensor.copy_(before)
            self._swapped = False

    def describe(self) -> dict[str, Any]:
        """For a run's record."""
        return {"averaged_steps": self.averaged}

    def state_dict(self) -> dict[str, Any]:
        """The settings, the count and the averages by name, whole where they are sharded."""
        averages = {name: whole(tensor) for name, tensor in self._averages.items()}
        return {**self.settings(), "buffers": self.buffers, "averaged": self.averaged, "averages": averages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take the averages over; ValueError when the saved settings, names or shapes are not this object's."""
        kept = {"averaged", "averages"}
        own = {**self.settings(), "buffers": self.buffers}
        if {name: value for name, value in state.items() if name not in kept} != own or not kept <= state.keys():
            raise ValueError(f"the saved state with {sorted(state)} does not fit {self!r}")
        current = self._current()
        if current and state["averages"] and current.keys() != state["averages"].keys():
            odd = sorted(current.keys() ^ state["averages"].keys())
            raise ValueError(f"the saved averages are not of this network: {odd[0]!r} is on one side only")
        self._averages = {name: placed(value, current.get(name), name) for name, value in state["averages"].items()}
        self.averaged = int(state["averaged"])

    def __repr__(self) -> str:
        given = {**self.settings(), "buffers": self.buffers}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in given.items())})"

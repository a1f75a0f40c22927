"""The variance amplifier's clock in a run: T of each layer, summed on the device from what a step computes anyway."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.parameters import Entry, group_places


def pace(group: dict[str, Any]) -> float:
    """lr (1 - dampening) / (1 - momentum): how far a steady gradient moves a weight per step of torch.optim.SGD.

    Example:
        >>> round(pace({"lr": 0.1, "momentum": 0.9, "dampening": 0.0}), 9)
        1.0
    """
    return float(group["lr"]) * (1 - float(group["dampening"])) / (1 - float(group["momentum"]))


class Clock:
    """T, tau and the first V of each layer; nothing waits for the device until they are read.

    Example:
        >>> clock = Clock()
        >>> for _ in range(3):
        ...     clock.add(("a", "b"), torch.tensor([0.5, 0.25], dtype=torch.float64), torch.tensor([4.0, 9.0]), [0.125, 0.125])
        >>> clock.times(), clock.starts(), clock.taus
        ({'a': 1.5, 'b': 0.75}, {'a': 4.0, 'b': 9.0}, {'a': 0.375, 'b': 0.375})
    """

    def __init__(self) -> None:
        self.taus: dict[str, float] = {}
        self._times: dict[str, float] = {}
        self._starts: dict[str, float] = {}
        self._running: dict[tuple[str, ...], Tensor] = {}
        self._first: dict[tuple[str, ...], Tensor] = {}

    def add(self, names: tuple[str, ...], times: Tensor, variances: Tensor, taus: Sequence[float]) -> None:
        """A step: the T and tau that it adds, and V before it, shape (layers,)."""
        if names not in self._running:
            known = [self._times.pop(name, 0.0) for name in names]
            self._running[names] = torch.tensor(known, dtype=torch.float64, device=times.device)
            self._first[names] = variances.clone()
        self._running[names].add_(times)
        for name, tau in zip(names, taus, strict=True):
            self.taus[name] = self.taus.get(name, 0.0) + tau

    def times(self) -> dict[str, float]:
        """T of each layer."""
        found = dict(self._times)
        for names, values in self._running.items():
            for name, value in zip(names, values.tolist(), strict=True):
                found[name] = found.get(name, 0.0) + value
        return found

    def starts(self) -> dict[str, float]:
        """V of each layer before its first step."""
        for names, values in self._first.items():
            for name, value in zip(names, values.tolist(), strict=True):
                self._starts.setdefault(name, value)
        self._first.clear()
        return dict(self._starts)

    def state_dict(self) -> dict[str, Any]:
        """All of it, by layer."""
        return {"T": self.times(), "tau": dict(self.taus), "V0": self.starts()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over."""
        self.taus, self._times, self._starts = dict(state["tau"]), dict(state["T"]), dict(state["V0"])
        self._running, self._first = {}, {}


class Ticking:
    """The groups of an optimizer of which the clock is known: torch.optim.SGD, whose steps are lr times the gradient.

    Args:
        optimizer: takes the steps.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = weakref.ref(optimizer)  # a lever must not keep a forgotten optimizer alive
        self.known = isinstance(optimizer, torch.optim.SGD)
        self._places: dict[int, int] = {}
        self._held = -1

    def group(self, entry: Entry) -> dict[str, Any] | None:
        """The group that steps this tensor; None where no clock runs for it."""
        optimizer = self._optimizer()
        if not self.known or optimizer is None or entry.computed is not None:
            return None
        groups = optimizer.param_groups  # loading a state replaces them, so they are asked for by place
        if id(entry.parameter) not in self._places and self._held != (
            held := sum(len(group["params"]) for group in groups)
        ):
            self._places, self._held = group_places(optimizer), held  # not again for every tensor that is in no group
        place = self._places.get(id(entry.parameter))
        return None if place is None else groups[place]

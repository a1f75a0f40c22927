"""What levers remember of every tensor from step to step: one number each, by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


class NumberOfEach:
    """One float64 number for every name; it stays on the device, and a name that was never written holds NaN.

    Example:
        >>> memory = NumberOfEach()
        >>> memory.read(["a", "b"], torch.device("cpu"))
        tensor([nan, nan], dtype=torch.float64)
        >>> memory.write(torch.tensor([1.0, 2.0]))
        >>> memory.read(["b"], torch.device("cpu")), memory.as_dict()
        (tensor([2.], dtype=torch.float64), {'a': 1.0, 'b': 2.0})
    """

    def __init__(self) -> None:
        self._places: dict[str, int] = {}
        self._values = torch.zeros(0, dtype=torch.float64)
        self._names: list[str] = []
        self._at: Tensor | None = None
        """Places of the names read last; None where they are all there are, in order."""

    def read(self, names: Sequence[str], device: torch.device) -> Tensor:
        """The numbers of these names, shape (names,), on `device`."""
        if self._names != names:
            self._names = list(names)
            for name in names:
                self._places.setdefault(name, len(self._places))
            missing = len(self._places) - len(self._values)
            self._values = torch.cat([self._values, self._values.new_full((missing,), math.nan)])
            every = self._names == list(self._places)
            self._at = None if every else torch.tensor([self._places[name] for name in names])
        if self._values.device != device:
            self._values = self._values.to(device)
        if self._at is None:
            return self._values
        self._at = self._at.to(device)
        return self._values[self._at]

    def write(self, values: Tensor) -> None:
        """Put new numbers in the place of those read last."""
        if self._at is None:
            self._values = values.to(torch.float64)
        else:
            self._values = self._values.index_copy(0, self._at, values.to(torch.float64))

    def as_dict(self) -> dict[str, float]:
        """The numbers by name, those never written left out."""
        held = zip(self._places, self._values.tolist(), strict=True)
        return {name: value for name, value in held if not math.isnan(value)}

    def load(self, saved: Mapping[str, float]) -> None:
        """Hold these numbers and no others."""
        self._places = {name: place for place, name in enumerate(saved)}
        self._values = torch.tensor([float(value) for value in saved.values()], dtype=torch.float64)
        self._names, self._at = [], None

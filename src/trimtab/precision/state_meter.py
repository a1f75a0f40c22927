"""What codes do to an optimizer's state, for a `ShrinkageMeter`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.collectives import sum_over_shards
from trimtab.parameters import Entry
from trimtab.precision.meter import ShrinkageMeter
from trimtab.precision.shrinkage import Measured, shrinkage_sums


class StateMeter:
    """Collects the tensors of a step, by their name in the optimizer's state.

    Args:
        meter: where they go; None measures nothing.

    Raises:
        TypeError: `meter` is none.
    """

    def __init__(self, meter: ShrinkageMeter | None) -> None:
        if meter is not None and not isinstance(meter, ShrinkageMeter):
            raise TypeError(f"meter must be a ShrinkageMeter or None, got {meter!r}")
        self.meter = meter
        self._found: dict[str, list[tuple[Entry, Tensor]]] = {}

    def due(self, step: int) -> bool:
        """Whether the meter wants this step."""
        return self.meter is not None and self.meter.due(step)

    def add(self, name: str, entry: Entry, before: Tensor, after: Tensor) -> None:
        """A tensor, and what its codes stand for, on this rank."""
        self._found.setdefault(name, []).append((entry, shrinkage_sums(before, after.view(before.shape))))

    def end(self, step: int) -> None:
        """Hand over the step's; every rank calls this in the same steps."""
        found, self._found = self._found, {}
        if self.meter is None or not found:
            return
        kinds = {}
        for name, rows in found.items():
            sums = torch.stack([each.to(rows[0][1].device) for _, each in rows])
            own = sum_over_shards(sums, [entry.parameter for entry, _ in rows])
            kinds[f"state {name}"] = Measured(step, [entry.name for entry, _ in rows], own)
        self.meter.record(kinds)

    def flush(self) -> None:
        """Write what waits."""
        if self.meter is not None:
            self.meter.flush()

    def state_dict(self) -> dict[str, Any]:
        """What the meter holds."""
        return {} if self.meter is None else {"meter": self.meter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with it."""
        if self.meter is not None and "meter" in state:
            self.meter.load_state_dict(state["meter"])

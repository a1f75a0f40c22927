"""Weights whose rounded value goes back and forth between two numbers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trimtab.checks import whole
from trimtab.precision.format import Format


class Oscillation:
    """Which entries of a tensor, rounded anew each step, changed and changed back within a window of steps.

    An entry oscillates at a step when, in the last `window` steps, it changed in one direction after a change in the other at
    most `window` steps earlier. A change counts above `2^-(m + 2)` of the larger of the two magnitudes, m the format's mantissa
    bits: half the least distance between neighbours, so that a scale that drifts is no change of the number [ours]. (arXiv
    2510.27527 compares the way a rounded weight makes with that of its master, over a window.)

    Keeps 13 bytes for each entry.

    Args:
        window: steps.
        format: of the elements.

    Example:
        >>> from trimtab.precision import named
        >>> seen = Oscillation(4, named("e2m1"))
        >>> for step, value in enumerate((1.0, 1.5, 1.0, 1.0)):
        ...     seen.see(step, torch.tensor([value, 2.0]))
        >>> seen.count(3).item(), seen.count(6).item()
        (1, 0)
    """

    def __init__(self, window: int, format: Format) -> None:
        self.window = whole("window of an oscillation", window, 2)
        self.least = 2.0 ** -(format.mantissa + 2)
        self._step = -1
        self._last = torch.empty(0)
        self._direction = torch.empty(0, dtype=torch.int8)
        self._changed = self._returned = torch.empty(0, dtype=torch.int32)

    @torch.no_grad()
    def see(self, step: int, rounded: Tensor) -> None:
        """Compare with what was seen in the step before; the same step again changes nothing, another shape begins anew."""
        if step == self._step:
            return
        now = rounded.detach().float()
        self._step = step
        if self._last.shape != now.shape or self._last.device != now.device:
            never = -(2**30)
            self._direction = torch.zeros_like(now, dtype=torch.int8)
            self._changed = torch.full_like(now, never, dtype=torch.int32)
            self._returned = torch.full_like(now, never, dtype=torch.int32)
            self._last = now.clone()
            return
        difference = now - self._last
        moved = difference.abs() > self.least * torch.maximum(now.abs(), self._last.abs())
        direction = torch.where(moved, difference.sign(), 0.0).to(torch.int8)
        back = moved & (direction == -self._direction) & (self._changed >= step - self.window)
        self._returned.masked_fill_(back, step)
        self._changed.masked_fill_(moved, step)
        self._direction = torch.where(moved, direction, self._direction)
        self._last = torch.where(moved, now, self._last)

    def count(self, step: int) -> Tensor:
        """Entries that oscillate at `step`; on their device."""
        return (self._returned > step - self.window).sum()

    def state_dict(self) -> dict[str, Tensor | int]:
        """What was seen."""
        return {
            "step": self._step, "last": self._last, "direction": self._direction, "changed": self._changed,
            "returned": self._returned,
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Tensor | int]) -> None:
        """Go on from there."""
        self._step = int(state["step"])
        self._last, self._direction, self._changed, self._returned = (
            torch.as_tensor(state[name]).clone() for name in ("last", "direction", "changed", "returned")
        )

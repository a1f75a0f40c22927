"""Numbers kept on the device until many steps' worth are fetched at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.checks import whole


class Recorder:
    """A buffer of one row of numbers per step, on whatever device they are made; `fetch` is its only synchronisation.

    Args:
        capacity: rows that fit; the owner fetches when `full`.

    Raises:
        ValueError: capacity below 1; (slot) another shape or device while rows wait to be fetched.

    Example:
        >>> recorder = Recorder(capacity=2)
        >>> _ = recorder.slot((2,), torch.device("cpu")).copy_(torch.tensor([1.0, 2.0]))
        >>> recorder.commit(step=5)
        >>> [(steps, values.tolist()) for steps, values in fetch([recorder])]
        [([5], [[1.0, 2.0]])]
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = whole("capacity", capacity, 1)
        self.steps: list[int] = []
        self.buffer = torch.empty(0, dtype=torch.float64)

    @property
    def full(self) -> bool:
        """Whether no row is free."""
        return len(self.steps) == self.capacity

    def fits(self, shape: Sequence[int], device: torch.device) -> bool:
        """Whether `slot` may be called with these: a row is free, and of that kind or the first one."""
        same = self.buffer.shape[1:] == torch.Size(shape) and self.buffer.device == device
        return not self.full and (same or not self.steps)

    def slot(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """The next free row, float64, zeroed; it counts only once `commit` is called."""
        if not self.fits(shape, device):
            raise ValueError(f"{len(self.steps)} rows wait; fetch them before a row of {tuple(shape)} on {device}")
        if self.buffer.shape[1:] != torch.Size(shape) or self.buffer.device != device:
            self.buffer = torch.empty(self.capacity, *shape, dtype=torch.float64, device=device)
        return self.buffer[len(self.steps)].zero_()

    def commit(self, step: int) -> None:
        """Keep what was written into the slot as the row of `step`."""
        self.steps.append(step)

    def clear(self) -> None:
        """Forget the rows that wait."""
        self.steps = []


def fetch(recorders: Sequence[Recorder]) -> list[tuple[list[int], Tensor]]:
    """The rows that wait in each recorder, as steps and float64 values on the CPU; one synchronisation for all on a device.

    The recorders are empty afterwards.
    """
    waiting = [recorder.buffer[: len(recorder.steps)] for recorder in recorders]
    found = [torch.empty(0)] * len(waiting)
    for device in dict.fromkeys(rows.device for rows in waiting):
        own = [at for at, rows in enumerate(waiting) if rows.device == device]
        joined = torch.cat([waiting[at].reshape(-1) for at in own]).cpu()
        for at, values in zip(own, torch.split(joined, [waiting[at].numel() for at in own]), strict=True):
            found[at] = values.view(waiting[at].shape)
    steps = [recorder.steps for recorder in recorders]
    for recorder in recorders:
        recorder.clear()
    return list(zip(steps, found, strict=True))

"""Random numbers for rounding: many short lanes side by side, seeded by a generator, so that most of them cost two products."""

from __future__ import annotations

import torch
from torch import Tensor

# a lane's words are w_k = A w_(k-1) + C, and each serves twice, as w and as K w
LANES_CPU, LANES_GPU = 1 << 16, 1 << 21
A, C = 747796405, -1403630843
K = -1640531535


class Draws:
    """32-bit words in the order of the elements, for at most `count` of them in all.

    The first `2 lanes` elements have words w and K w (K odd) of `lanes` words from the generator; each later run of as many has
    the next words of a linear congruential sequence in each lane. Lanes start at independent random places, so within a run
    words are independent but for the pairs (w, K w), and from run to run they are as good as the high bits of the sequence.
    What comes out depends on the generator, the count and the kind of device, never on how many are taken at a time.
    """

    def __init__(self, generator: torch.Generator | None, device: torch.device, count: int) -> None:
        most = LANES_CPU if device.type == "cpu" else LANES_GPU
        self._lanes = max(min(most, (count + 1) // 2), 1)
        self._generator, self._device = generator, device
        self._run: Tensor | None = None
        self._at = 2 * self._lanes
        self._addend, self._factor = (torch.tensor(one, dtype=torch.int32, device=device) for one in (C, K))

    def take(self, count: int) -> Tensor:
        """The next words, int32; valid until the next call."""
        if self._at + count <= 2 * self._lanes and self._run is not None:
            self._at += count
            return self._run[self._at - count : self._at]
        if self._at == 2 * self._lanes and count <= 2 * self._lanes:
            self._next()
            return self.take(count)
        parts = []
        while count:
            here = min(count, 2 * self._lanes - self._at)
            if here:
                parts.append(self.take(here).clone())
                count -= here
            if count:
                self._next()
        return torch.cat(parts)

    def _next(self) -> None:
        lanes, self._at = self._lanes, 0
        if self._run is None:
            words = torch.empty((lanes + 1) // 2, dtype=torch.int64, device=self._device)
            words.random_(-(2**63), None, generator=self._generator)
            self._run = torch.empty(2 * lanes, dtype=torch.int32, device=self._device)
            self._run[:lanes] = words.view(torch.int32)[:lanes]
        else:
            torch.add(self._addend, self._run[:lanes], alpha=A, out=self._run[:lanes])
        torch.mul(self._run[:lanes], self._factor, out=self._run[lanes:])

"""GradientDropout: where the losses disagree on a sign, one sign is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.checks import number, one_of, whole
from trimtab.multitask.base import Combiner, Tasks, piece_elements
from trimtab.tensors.passes import flattened, working_dtype

Passes = Literal["all", "first"]
PASSES = ("all", "first")


class GradientDropout(Combiner):
    """Gradient sign dropout: in each element one sign is drawn, and only gradients of that sign pass.

    `P = (1 + sum_k g_k / sum_k |g_k|) / 2`, `u` uniform in [0, 1) for each element; where `P > u` the positive gradients pass,
    elsewhere the negative ones: `g = sum_k (leak + (1 - leak) m_k) g_k`. So elements on which all agree stay whole, and the
    result is the plain sum on average only where the losses agree. With `passes="first"` the first loss is the task and the
    others only judge it (R-AMT): its gradient a passes with probability `(1 + sign(a) sum_k g_k / sum_k |g_k|) / 2`.

    Args:
        leak: share of what was not drawn that passes all the same; 0 to 1. Default 0 (paper's plain form); 1 gives the sum.
        seed: of the draws. Default 0.
        passes: whose gradients come through: of "all" losses (default), or of the "first" alone.

    Raises:
        ValueError: `leak` is out of range, or `passes` is unknown.

    The draws come from a generator of its own on the gradients' device, alike on every rank. A NaN stays where it is.

    Reference: Chen et al., arXiv 2010.06808, lines 10 to 15 of its algorithm, on the gradients of the weights;
    `passes="first"`: the gradient dropout of Zheng et al., arXiv 2307.15049, whose strength is `1 - leak`.

    Example:
        >>> GradientDropout()(torch.tensor([[1.0, 2.0], [1.0, -2.0]])).abs()
        tensor([2., 2.])
    """

    def __init__(self, leak: float = 0.0, seed: int = 0, passes: Passes = "all") -> None:
        self.leak = number("leak", leak, least=0, most=1)
        self.seed = whole("seed", seed)
        self.passes = one_of("passes", passes, PASSES)
        self._draws: dict[torch.device, torch.Generator] = {}
        self._saved: Tensor | None = None

    def _generator(self, device: torch.device) -> torch.Generator:
        if device not in self._draws:
            self._draws[device] = torch.Generator(device).manual_seed(self.seed)
            if self._saved is not None:
                self._draws[device].set_state(self._saved)
        return self._draws[device]

    def combine_(self, tasks: Tasks, products: Tensor) -> list[Tensor]:
        """Piece by piece, written over the first loss's gradients."""
        limit = piece_elements(tasks)
        for parts in zip(*tasks, strict=True):
            flats = flattened(parts)
            if flats[0].data_ptr() != parts[0].data_ptr():  # a layout with gaps: no flat view
                self._pass_(parts)
                continue
            for pieces in zip(*(torch.split(flat, limit) for flat in flats), strict=True):
                self._pass_(pieces)
        return list(tasks[0])

    def _pass_(self, pieces: Sequence[Tensor]) -> None:
        dtype = working_dtype(pieces[0])
        rows = [piece.to(dtype) for piece in pieces]
        total, size = torch.zeros_like(rows[0]), torch.zeros_like(rows[0])
        for row in rows:
            total += row
            size += row.abs()
        purity = torch.where(size > 0, (1 + total / size) / 2, 0.5)
        draws = torch.rand(purity.shape, dtype=dtype, device=purity.device, generator=self._generator(purity.device))
        if self.passes == "first":
            first = rows[0]
            keeps = torch.where(first < 0, 1 - purity, purity) > draws
            pieces[0].copy_(first * (self.leak + (1 - self.leak) * keeps))
            return
        positive = purity > draws
        total.zero_()
        for row in rows:
            passes = torch.where(positive, row.clamp(min=0), row.clamp(max=0))
            total += passes if not self.leak else self.leak * row + (1 - self.leak) * passes
        pieces[0].copy_(total)

    def settings(self) -> dict[str, Any]:
        """All that decides."""
        return {"leak": self.leak, "seed": self.seed, "passes": self.passes}

    def memory(self) -> dict[str, Any]:
        """Where the draws stand, on the one device that it was used on."""
        found = [draws.get_state() for draws in self._draws.values()]
        return {"draws": found[0] if found else self._saved}

    def remember(self, memory: dict[str, Any]) -> None:
        """Go on drawing from there."""
        self._draws.clear()
        self._saved = None if memory["draws"] is None else memory["draws"].cpu()

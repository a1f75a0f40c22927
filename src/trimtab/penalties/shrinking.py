"""Soft thresholds on many tensors: read what a threshold would leave, then set it, each in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trimtab.collectives import local_part, sum_over_shards
from trimtab.tensors.chunks import Batch, layout_of
from trimtab.tensors.passes import flattened, working_dtype


class Shrinking:
    """Soft thresholds `sign(w) max(|w| - t, 0)` on tensors of one device and working precision.

    Args:
        parameters: whole or sharded tensors.

    Example:
        >>> weight = torch.tensor([[3.0, -5.0, 1.0]])
        >>> one = Shrinking([weight])
        >>> one.squares_left(torch.tensor([2.0])).round()
        tensor([10.], dtype=torch.float64)
        >>> one.shrink_(torch.tensor([2.0]), torch.tensor([10.0]))
        >>> weight
        tensor([[ 10., -30.,   0.]])
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = parameters
        self._weights = [local_part(parameter.detach()) for parameter in parameters]
        self._flats = [flattened([weight])[0] for weight in self._weights]
        self.chunks = layout_of(self._flats, working_dtype(self._flats[0]))

    def _shrunk(self, thresholds: Tensor) -> Iterator[tuple[Batch, Tensor]]:
        """What the thresholds leave, batch by batch, in a buffer that the next one takes."""
        chunks = self.chunks
        most = chunks.column(thresholds)
        copy, work = chunks.buffer(), chunks.buffer()
        for batch in chunks.batches:
            weight = chunks.gather(batch, self._flats, copy[: batch.number])
            limit = most[batch.rows]
            held = torch.clamp(weight, -limit, limit, out=work[: batch.number])
            yield batch, torch.sub(weight, held, out=held)

    def squares_left(self, thresholds: Tensor) -> Tensor:
        """Sum of squares of what thresholds of shape (tensors,) would leave; float64, of whole tensors, shape (tensors,)."""
        chunks = self.chunks
        norms = torch.empty(chunks.rows, dtype=chunks.dtype, device=chunks.device)
        for batch, left in self._shrunk(thresholds):  # of padding zeros are left
            torch.linalg.vector_norm(left, 2, 1, out=norms[batch.rows])
        squares = chunks.in_order(chunks.over_rows(norms.double().square()))
        return sum_over_shards(squares.unsqueeze(1), self.parameters).squeeze(1)

    def shrink_(self, thresholds: Tensor, factors: Tensor | None = None) -> None:
        """`w <- factor sign(w) max(|w| - t, 0)`, both of shape (tensors,); halves are rounded once."""
        chunks = self.chunks
        columns = None if factors is None else chunks.column(factors)
        for batch, left in self._shrunk(thresholds):
            if columns is not None:
                left.mul_(columns[batch.rows])
            torch._foreach_copy_(*chunks.parts_of(batch, self._flats, left))
        for flat, weight in zip(self._flats, self._weights, strict=True):
            if flat.data_ptr() != weight.data_ptr():  # a layout with gaps was copied
                order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
                turned = weight.permute(order)
                turned.copy_(flat.view(turned.shape))

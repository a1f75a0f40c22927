"""Many flat tensors read once, as rows of equal length that few operations reduce: the ground of means, variances and counts.

Small tensors are copied together into a buffer that stays in the cache, their last rows filled up with zeros; large ones are
read where they lie. On a CPU float32 sums run first, over short stretches that no order of summation can spoil, and are joined
in float64; a tensor whose mean or range makes them doubtful is summed again in float64 around each row's own mean, as all
tensors are on an accelerator, where nothing waits for a value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

LENGTHS = (32, 64, 128, 256, 512)
"""Elements of a row: the length that costs least for the tensors at hand."""
PER_ROW = 50
"""What a row costs beside its elements, in elements."""
SUMMED, SQUARED = 512, 128
"""Elements whose sum and whose squares' sum run in float32 [ours]: at worst, all of them equal, 4e-7 and 4.5e-7 off."""
SMALL_MEAN = {torch.float32: 0.25, torch.float64: 1 - 1e-6}
"""Share of a tensor's sum of squares that is its mean's, up to which the difference of the two is taken [ours]."""
LEAST_SQUARES = {torch.float32: 1e-20, torch.float64: 0.0}
"""Sums of squares up to this may have lost terms to the range of the working precision."""
BATCH_ON_CPU = 1 << 18
"""Elements worked on at a time on a CPU: 1 MiB of float32, so that every pass after the first reads the cache."""
BATCH_ON_ACCELERATOR = 1 << 22
"""The same elsewhere, where few large kernels are best; 16 to 32 MiB for each of a handful of buffers."""


class Part(NamedTuple):
    """A stretch of a tensor (or all of it), and how many zeros fill its last row."""

    tensor: int
    start: int
    stop: int
    padding: int
    whole: bool

    def of(self, flats: Sequence[Tensor]) -> Tensor:
        """The stretch."""
        return flats[self.tensor] if self.whole else flats[self.tensor][self.start : self.stop]


class Batch(NamedTuple):
    """Parts that are worked on together, which rows they are, and which of the rows with padding are among them."""

    parts: list[Part]
    rows: slice
    filled: slice

    @property
    def number(self) -> int:
        """How many rows."""
        return int(self.rows.stop - self.rows.start)


class Chunks:
    """How flat tensors of the given sizes are cut into rows; no numbers of theirs are kept.

    Args:
        sizes: number of elements of each tensor.
        dtype: torch.float32 or torch.float64.
        device: where the tensors are.
        looks: whether values may decide what is done next, which costs nothing on a CPU and a synchronisation elsewhere.

    Attributes:
        owners: the tensor that each row is of, shape (rows,).
        valid: elements of each row that are no padding, shape (rows,), float64.
        elements: of each tensor, shape (tensors,), float64.

    Example:
        >>> Chunks([2, 3]).moments([torch.tensor([1.0, 3.0]), torch.tensor([0.0, -4.0, 1.0])]).round()
        tensor([[ 4., -3.],
                [ 2., 14.]], dtype=torch.float64)
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        looks: bool | None = None,
    ) -> None:
        device = torch.device(device)
        self.looks = device.type == "cpu" if looks is None else looks
        self.dtype, self.device = dtype, device
        self.length = length = row_length(sizes)
        most = BATCH_ON_CPU if device.type == "cpu" else BATCH_ON_ACCELERATOR
        self.most = max(1, most // length) * length
        # those with padding first, large ones last: few batches hold all of either
        order = sorted(range(len(sizes)), key=lambda at: (sizes[at] >= self.most, sizes[at] % length == 0))
        self.batches = _batches(sizes, order, self.most, length)
        counts = torch.tensor([-(-sizes[tensor] // length) for tensor in order], dtype=torch.long)
        number = torch.tensor([sizes[tensor] for tensor in order], dtype=torch.float64)
        owners = torch.repeat_interleave(torch.arange(len(sizes)), counts)  # in this order
        padding = counts * length - number
        valid = torch.full((len(owners),), float(length), dtype=torch.float64)
        filled = (padding > 0).nonzero().flatten()
        last = counts.cumsum(0)[filled] - 1
        valid[last] -= padding[filled]
        self.rows = len(owners)
        self.largest = max((batch.number for batch in self.batches), default=0)
        self._last = last.to(device)
        self._here = (torch.arange(length) < valid[last].unsqueeze(1)).to(device)
        self._counts = counts.to(device)
        self._sorted = order == list(range(len(sizes)))
        self._order = torch.tensor(order, dtype=torch.long).argsort().to(device)
        self.owners = torch.tensor(order, dtype=torch.long)[owners].to(device)
        self.valid, self._number = valid.to(device), number.to(device)
        self.divisor = self.valid.to(dtype)
        self.elements = torch.tensor(sizes, dtype=torch.float64, device=device)
        self.padding = -self.elements % length
        self._zeros = torch.zeros(length, dtype=dtype, device=device)

    def buffer(self, rows: int | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """Fresh memory for the largest batch, or for so many rows."""
        return torch.empty(
            self.largest if rows is None else rows, self.length, dtype=dtype or self.dtype, device=self.device
        )

    def gather(self, batch: Batch, flats: Sequence[Tensor], into: Tensor) -> Tensor:
        """The batch's elements, shape (rows, elements): a view of the tensor, to be read only, or else the copy `into`."""
        stretches = [part.of(flats) for part in batch.parts]
        if batch.filled.stop > batch.filled.start:
            stretches = [
                stretch
                for part, values in zip(batch.parts, stretches, strict=True)
                for stretch in ((values, self._zeros[: part.padding]) if part.padding else (values,))
            ]
        elif len(stretches) == 1 and stretches[0].dtype == self.dtype:
            return stretches[0].view(-1, self.length)
        torch.cat(stretches, out=into.view(-1))
        return into

    def parts_of(self, batch: Batch, flats: Sequence[Tensor], rows: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """The stretches of `flats` that a batch is of, and what stands for them in its `rows`."""
        sizes = [size for part in batch.parts for size in (part.stop - part.start, part.padding)]
        return [part.of(flats) for part in batch.parts], list(rows.view(-1).split_with_sizes(sizes)[::2])

    def column(self, values: Tensor) -> Tensor:
        """Of a value for each tensor, shape (tensors,), one for each row, shape (rows, 1), in the working precision."""
        return values[self.owners].to(self.dtype).unsqueeze(1)

    def moments(
        self,
        flats: Sequence[Tensor],
        prepare: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        centred: bool = False,
    ) -> Tensor:
        """Sum and squared deviations from the mean, shape (2, tensors), float64, within 1e-6; NaN where an entry is not finite.

        Args:
            flats: one-dimensional tensors of the sizes given, of any real dtype.
            prepare: `f(values, out)`, elementwise, of which the moments are wanted instead; it writes to `out`.
            centred: for magnitudes and other values of one sign: the sums run around each row's mean at once.
        """
        copy, sums = self.buffer(), RowSums(self, centred=centred)
        for batch in self.batches:
            values = self.gather(batch, flats, copy[: batch.number])
            if prepare is not None:
                values = self.clear_padding(prepare(values, copy[: batch.number]), batch)
            sums.add(values, batch)
        return self.joined(sums.found(), flats, prepare, centred=centred)

    def clear_padding(self, rows: Tensor, batch: Batch) -> Tensor:
        """`rows` of a batch with zeros where they hold no elements, in place."""
        if batch.filled.stop > batch.filled.start:
            last = self._last[batch.filled] - batch.rows.start
            rows[last] = rows[last].where(self._here[batch.filled], 0)
        return rows

    def joined(
        self,
        kept: Tensor,
        flats: Sequence[Tensor],
        prepare: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        centred: bool = False,
    ) -> Tensor:
        """The moments of tensors from those of their rows, shape (2, rows); the doubtful ones summed again."""
        total = self.over_rows(kept[0])
        away = torch.repeat_interleave(total / self._number, self._counts, output_size=self.rows)
        away = torch.div(kept[0], self.valid).sub_(away)
        squares = self.over_rows(torch.addcmul(kept[1], away.square_(), self.valid))
        found = self.in_order(torch.stack([total, squares]))
        if not self.looks:
            return found
        total, squares = found
        of_mean = total.square().div_(self.elements)
        if centred:  # nothing was taken off but what cancels nothing
            sound = squares > LEAST_SQUARES[self.dtype]
        else:
            second = of_mean + squares
            sound = (second > LEAST_SQUARES[self.dtype]) & (of_mean <= SMALL_MEAN[self.dtype] * second)
        sound &= squares.isfinite()
        again = sound.logical_not_().logical_and_(self.elements > 0).nonzero().flatten().tolist()
        if again:
            doubtful = [flats[tensor] for tensor in again]
            chunks = Chunks([flat.numel() for flat in doubtful], self.dtype, self.device, looks=False)
            found[:, again] = chunks.moments(doubtful, prepare)
        return found

    def over_rows(self, values: Tensor, how: str = "sum") -> Tensor:
        """Of a value for each row what the tensors get, in the order of the batches."""
        return torch.segment_reduce(values, how, lengths=self._counts, axis=0, unsafe=True, initial=0)

    def in_order(self, values: Tensor) -> Tensor:
        """`values`, shape (..., tensors) in the order of the batches, in that of the tensors."""
        return values if self._sorted else values.index_select(-1, self._order)


class RowSums:
    """Sum and squared deviations from the mean of each row of `Chunks`, batch by batch.

    Args:
        chunks: whose rows.
        centred: for values of one sign: squares are added around each row's mean.
    """

    def __init__(self, chunks: Chunks, *, centred: bool) -> None:
        self.chunks, self.centred = chunks, centred
        rows, length, device = chunks.rows, chunks.length, chunks.device
        if chunks.looks:
            self._sums = torch.empty(rows, max(1, length // SUMMED), dtype=chunks.dtype, device=device)
            self._norms = torch.empty(rows, max(1, length // SQUARED), dtype=chunks.dtype, device=device)
            if centred:
                self._work = chunks.buffer()
                self._centres = torch.empty(rows, dtype=chunks.dtype, device=device)
        else:
            self._wide = chunks.buffer(dtype=torch.float64)
            self._careful = torch.empty(2, rows, dtype=torch.float64, device=device)

    def add(self, values: Tensor, batch: Batch) -> None:
        """Read the values of a batch, shape (rows, elements)."""
        chunks, rows = self.chunks, batch.rows
        if not chunks.looks:
            found = careful_moments(self._wide[: batch.number].copy_(values), chunks.valid[rows])
            self._careful[0, rows], self._careful[1, rows] = found
            return
        if self.centred:
            centres = torch.div(values.sum(1), chunks.divisor[rows], out=self._centres[rows])
            values = torch.sub(values, centres.unsqueeze(1), out=self._work[: batch.number])
            chunks.clear_padding(values, batch)
        torch.sum(values.view(-1, min(SUMMED, chunks.length)), 1, out=self._sums[rows].view(-1))
        torch.linalg.vector_norm(values.view(-1, min(SQUARED, chunks.length)), 2, 1, out=self._norms[rows].view(-1))

    def found(self) -> Tensor:
        """Sums and squared deviations, float64, shape (2, rows)."""
        if not self.chunks.looks:
            return self._careful
        valid, total = self.chunks.valid, self._sums.sum(1, dtype=torch.float64)
        squares = self._norms.double().square_().sum(1).sub_(total.square().div_(valid))
        if self.centred:
            total.addcmul_(self._centres.double(), valid)
        return torch.stack([total, squares])


@lru_cache(maxsize=16)
def _layout(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device, most: int) -> Chunks:
    return Chunks(sizes, dtype, device)


def layout_of(flats: Sequence[Tensor], dtype: torch.dtype) -> Chunks:
    """`Chunks` for these tensors, of one device; those of the last few sets are remembered.

    Example:
        >>> layout_of([torch.ones(3)], torch.float32) is layout_of([torch.zeros(3)], torch.float32)
        True
    """
    device = flats[0].device
    most = BATCH_ON_CPU if device.type == "cpu" else BATCH_ON_ACCELERATOR
    return _layout(tuple([flat.numel() for flat in flats]), dtype, device, most)


def row_length(sizes: Sequence[int]) -> int:
    """The length of `LENGTHS` at which rows of these tensors, padding included, cost least.

    Example:
        >>> row_length([64, 64]), row_length([9216, 36864])
        (64, 512)
    """
    numbers = Counter(sizes)

    def cost(length: int) -> int:
        return sum(count * -(-size // length) * (length + PER_ROW) for size, count in numbers.items())

    return min(LENGTHS, key=cost)


def _batches(sizes: Sequence[int], order: Sequence[int], most: int, length: int) -> list[Batch]:
    """Cut and gather, at most `most` elements (a multiple of `length`) at a time, padding included."""
    batches: list[Batch] = []
    parts: list[Part] = []
    begin = end = first = filled = 0
    for part in _parts(sizes, order, most, length):
        rows = (part.stop - part.start + part.padding) // length
        if parts and (end - begin + rows) * length > most:
            batches.append(Batch(parts, slice(begin, end), slice(first, filled)))
            parts, begin, first = [], end, filled
        parts.append(part)
        end += rows
        filled += part.padding > 0
    return [*batches, Batch(parts, slice(begin, end), slice(first, filled))] if parts else batches


def _parts(sizes: Sequence[int], order: Sequence[int], most: int, length: int) -> Iterator[Part]:
    for tensor in order:
        size = sizes[tensor]
        for start in range(0, size, most):
            stop = min(start + most, size)
            yield Part(tensor, start, stop, -(stop - start) % length, stop - start == size)


def careful_moments(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and squared deviations of the first `valid` entries of each row, around their mean; uses up `values`.

    Args:
        values: shape (rows, columns), float64; what lies beyond the valid entries counts for nothing.
        valid: shape (rows,), float64, at least 1.

    Example:
        >>> total, squares = careful_moments(torch.tensor([[1e-30, 3e-30]]).double(), torch.tensor([2.0]).double())
        >>> round(total.item() * 1e30, 6), round(squares.item() * 1e60, 6)
        (4.0, 2.0)
    """
    beyond = torch.arange(values.shape[1], device=values.device) >= valid.unsqueeze(1)
    total = values.masked_fill_(beyond, 0).sum(1)
    deviations = values.sub_((total / valid).unsqueeze(1)).masked_fill_(beyond, 0)
    return total, deviations.square_().sum(1)

"""Many tensors read once: copied, a cache-sized block at a time, into chunks of equal length that few operations reduce.

Sums run in float64, within a chunk around its own mean where that is large, so neither a mean far above the deviation nor
squares beyond float32 lose digits. Nothing here waits for an accelerator.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

LENGTHS = (32, 64, 128, 256, 512)
"""Elements of a chunk: the length that costs least for the tensors at hand."""
PER_CHUNK = 50
"""What a chunk costs beside its elements, in elements."""
CANCELS = 1 - 1e-6
"""Share of a chunk's sum of squares that is the mean's, above which float64 would lose digits of the deviations."""
BLOCK_ON_CPU = 1 << 16
"""Elements copied at a time on a CPU: 256 KiB of float32, so that every pass after the copy reads the cache."""
BLOCK_ON_ACCELERATOR = 1 << 22
"""The same elsewhere, where few large kernels are best; 16 to 32 MiB for each of a handful of buffers."""
KEPT = 1 << 20
"""Elements up to which the copies of all blocks are kept (4 MiB), so that `below` need not copy again [ours]."""

COLUMNS = (
    "total", "squares", "max_abs", "zeros", "nan", "inf", "subnormal", "magnitude_total", "magnitude_squares",
)  # fmt: skip
"""What `Chunks.sums` finds of each tensor; `squares` are squared deviations from the mean, as in `trimtab.tensors.moments`."""
PLACE = {name: place for place, name in enumerate(COLUMNS)}


class Part(NamedTuple):
    """A stretch of a tensor, and how many zeros fill its last chunk."""

    tensor: int
    start: int
    stop: int
    padding: int


class Block(NamedTuple):
    """Parts that are copied together, and which chunks they become."""

    parts: list[Part]
    chunks: slice


class Chunks:
    """How flat tensors of the given sizes are cut, and the buffers their copies go to.

    Args:
        sizes: number of elements of each tensor.
        dtype: torch.float32 or torch.float64.
        device: where the tensors are.
        looks: whether values may decide what is done next, which costs nothing on a CPU and a synchronisation elsewhere.

    Example:
        >>> found = Chunks([2, 3]).sums([torch.tensor([1.0, 3.0]), torch.tensor([0.0, -4.0, 1.0])], {"zeros", "max_abs"})
        >>> found[:, PLACE["total"]].tolist(), found[:, PLACE["max_abs"]].tolist(), found[:, PLACE["zeros"]].tolist()
        ([4.0, -3.0], [3.0, 4.0], [0.0, 1.0])
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
        self.chunk = chunk = chunk_length(sizes)
        counts = [-(-size // chunk) for size in sizes]
        self.number = sum(counts)
        valid = []  # elements of each chunk
        for size, count in zip(sizes, counts, strict=True):
            if count:
                valid += [chunk] * (count - 1) + [size - (count - 1) * chunk]
        owners = [tensor for tensor, count in enumerate(counts) for _ in range(count)]
        self.lengths = torch.tensor(counts, device=device)
        self.valid = torch.tensor(valid, dtype=torch.float64, device=device)
        self.elements = torch.tensor(sizes, dtype=torch.float64, device=device)
        self.owners = torch.tensor(owners, dtype=torch.long, device=device)
        self.padding = self.lengths * chunk - self.elements
        self.blocks = _blocks(sizes, BLOCK_ON_CPU if device.type == "cpu" else BLOCK_ON_ACCELERATOR, chunk)
        largest = max((block.chunks.stop - block.chunks.start for block in self.blocks), default=0)
        self.keeps = self.number * chunk <= KEPT
        self._copy = torch.empty(self.number if self.keeps else largest, chunk, dtype=dtype, device=device)
        self._work = torch.empty(largest, chunk, dtype=dtype, device=device)
        self._wide = torch.empty(largest, chunk, dtype=torch.float64, device=device)
        self._zeros = torch.zeros(chunk, dtype=dtype, device=device)
        self._magnitudes = False
        """Whether the kept copies are the magnitudes of the tensors of the last call."""

    def _place(self, block: Block) -> Tensor:
        return self._copy[block.chunks if self.keeps else slice(block.chunks.stop - block.chunks.start)]

    def _gather(self, block: Block, flats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The block's elements, shape (chunks, elements), and a work space of that shape."""
        stretches = []
        for tensor, start, stop, padding in block.parts:
            flat = flats[tensor]
            stretches.append(flat if stop - start == flat.numel() else flat[start:stop])
            if padding:
                stretches.append(self._zeros[:padding])
        used = self._place(block)
        torch.cat(stretches, out=used.view(-1))
        return used, self._work[: len(used)]

    def sums(self, flats: Sequence[Tensor], wanted: set[str], smallest_normal: float = 0.0) -> Tensor:
        """What `COLUMNS` says of each tensor, shape (tensors, columns), float64; columns that are not wanted hold 0.

        Args:
            flats: one-dimensional tensors of the sizes given, of any real dtype.
            wanted: column names; "total" and "squares" are always found, one of the magnitudes' brings both.
            smallest_normal: values below it in magnitude, zeros apart, are counted as subnormal.
        """
        kept = torch.zeros(self.number, len(COLUMNS), dtype=torch.float64, device=self.valid.device)
        self._magnitudes = bool(wanted - {"total", "squares"})
        for block in self.blocks:
            values, work = self._gather(block, flats)
            row = kept[block.chunks]
            finite = self._moments(values, row, self.valid[block.chunks], magnitudes="magnitude_squares" in wanted)
            if self._magnitudes:
                self._fill(row, values.abs_(), work, wanted - {"nan", "inf"} if finite else wanted, smallest_normal)
        rows = self._over_chunks(kept)
        rows[:, PLACE["squares"]] = self._squares(kept, rows, "total", "squares")
        if "magnitude_squares" in wanted:
            rows[:, PLACE["magnitude_squares"]] = self._squares(kept, rows, "magnitude_total", "magnitude_squares")
        if "zeros" in wanted:
            rows[:, PLACE["zeros"]] -= self.padding
        if "max_abs" in wanted:
            largest = kept[:, PLACE["max_abs"]].contiguous()
            rows[:, PLACE["max_abs"]] = torch.segment_reduce(
                largest, "max", lengths=self.lengths, unsafe=True, initial=0
            )
        return rows

    def _moments(self, values: Tensor, row: Tensor, valid: Tensor, *, magnitudes: bool) -> bool:
        """Sum and squared deviations of each chunk; whether all values are known to be finite."""
        wide = self._wide[: len(values)].copy_(values)
        total, squares = PLACE["total"], PLACE["squares"]
        of_magnitudes, deviations = PLACE["magnitude_total"], PLACE["magnitude_squares"]
        if not self.looks:
            row[:, total], row[:, squares] = careful_moments(wide, valid)
            if magnitudes:
                row[:, of_magnitudes], row[:, deviations] = careful_moments(wide.copy_(values).abs_(), valid)
            return False
        row[:, total] = mean = wide.sum(1)
        if magnitudes:
            row[:, of_magnitudes] = mean = wide.abs_().sum(1)
        second = wide.square_().sum(1)
        row[:, squares] = second - row[:, total].square() / valid
        of_mean = mean.square().div_(valid)
        if magnitudes:
            row[:, deviations] = second - of_mean
        # the magnitudes' mean is the larger one: what does not cancel there cancels nowhere
        again = (of_mean > CANCELS * second).nonzero().flatten()
        if len(again):
            some = values[again].double()
            row[again, total], row[again, squares] = careful_moments(some, valid[again])
            if magnitudes:
                row[again, of_magnitudes], row[again, deviations] = careful_moments(some.abs_(), valid[again])
        return bool(second.isfinite().all())

    def _fill(self, kept: Tensor, magnitudes: Tensor, work: Tensor, wanted: set[str], smallest_normal: float) -> None:
        """Write each chunk's row, the moments apart."""
        if "max_abs" in wanted:
            kept[:, PLACE["max_abs"]] = magnitudes.amax(1)
        if wanted & {"zeros", "subnormal"}:
            zeros = torch.eq(magnitudes, 0, out=work).sum(1)
            kept[:, PLACE["zeros"]] = zeros
            if "subnormal" in wanted:
                kept[:, PLACE["subnormal"]] = torch.lt(magnitudes, smallest_normal, out=work).sum(1).sub_(zeros)
        if wanted & {"nan", "inf"}:
            kept[:, PLACE["nan"]] = torch.ne(magnitudes, magnitudes, out=work).sum(1)
            kept[:, PLACE["inf"]] = torch.eq(magnitudes, float("inf"), out=work).sum(1)

    def _over_chunks(self, kept: Tensor) -> Tensor:
        return torch.segment_reduce(kept, "sum", lengths=self.lengths, axis=0, unsafe=True)

    def _squares(self, kept: Tensor, rows: Tensor, total: str, squares: str) -> Tensor:
        """`sum M2_c + n_c (m_c - m)^2` over the chunks of each tensor."""
        mean = rows[:, PLACE[total]] / self.elements
        away = kept[:, PLACE[total]] / self.valid - mean[self.owners]
        return self._over_chunks(kept[:, PLACE[squares]] + self.valid * away.square_())

    def below(self, flats: Sequence[Tensor], limits: Tensor) -> Tensor:
        """How many magnitudes of each tensor are below its limit, which is positive or NaN (then NaN); shape (tensors,).

        Follows `sums` of the same tensors.
        """
        kept = torch.zeros(self.number, dtype=torch.float64, device=self.valid.device)
        of_chunk = limits.to(self._copy.dtype)[self.owners].unsqueeze(1)
        for block in self.blocks:
            if self.keeps and self._magnitudes:
                values, work = self._place(block), self._work[: block.chunks.stop - block.chunks.start]
            else:
                values, work = self._gather(block, flats)
                values.abs_()
            kept[block.chunks] = torch.lt(values, of_chunk[block.chunks], out=work).sum(1)
        return self._over_chunks(kept) - self.padding + 0 * limits


def chunk_length(sizes: Sequence[int]) -> int:
    """The length of `LENGTHS` at which chunks of these tensors, padding included, cost least.

    Example:
        >>> chunk_length([64, 64]), chunk_length([9216, 36864])
        (64, 512)
    """
    numbers = Counter(sizes)

    def cost(length: int) -> int:
        return sum(count * -(-size // length) * (length + PER_CHUNK) for size, count in numbers.items())

    return min(LENGTHS, key=cost)


def _blocks(sizes: Sequence[int], most: int, chunk: int) -> list[Block]:
    """Cut and gather, at most `most` elements (a multiple of `chunk`) at a time, padding included."""
    blocks: list[Block] = []
    parts: list[Part] = []
    begin = end = 0
    for tensor, size in enumerate(sizes):
        for start in range(0, size, most):
            stop = min(start + most, size)
            chunks = -(-(stop - start) // chunk)
            if parts and (end - begin + chunks) * chunk > most:
                blocks.append(Block(parts, slice(begin, end)))
                parts, begin = [], end
            parts.append(Part(tensor, start, stop, chunks * chunk - (stop - start)))
            end += chunks
    return [*blocks, Block(parts, slice(begin, end))] if parts else blocks


def careful_moments(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and squared deviations of the first `valid` entries of each row, around their mean.

    Args:
        values: shape (rows, columns), float64; what lies beyond the valid entries is 0.
        valid: shape (rows,), float64, at least 1.

    Example:
        >>> total, squares = careful_moments(torch.tensor([[1e-30, 3e-30]]).double(), torch.tensor([2.0]).double())
        >>> round(total.item() * 1e30, 6), round(squares.item() * 1e60, 6)
        (4.0, 2.0)
    """
    total = values.sum(1)
    deviations = values - (total / valid).unsqueeze(1)
    beyond = torch.arange(values.shape[1], device=values.device) >= valid.unsqueeze(1)
    return total, deviations.masked_fill_(beyond, 0).square_().sum(1)

"""Many tensors read once: copied, a cache-sized block at a time, into chunks of equal length that few operations reduce.

Within a chunk sums run in the tensors' own precision (float32 for halves), between chunks in float64, so neither a mean far
above the deviation nor squares beyond float32 lose digits. Nothing here waits for an accelerator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.moments import SAFE_SQUARES, moments

CHUNK = 256
"""Elements summed at once [ours]; the numbers kept per chunk are a small fraction of the tensors' memory."""
BLOCK_ON_CPU = 1 << 16
"""Elements copied at a time on a CPU: 256 KiB of float32, so that every pass after the copy reads the cache."""
BLOCK_ON_ACCELERATOR = 1 << 23
"""The same elsewhere, where few large kernels are best; 32 MiB of float32 for each of a handful of buffers."""

COLUMNS = (
    "total", "squares", "max_abs", "zeros", "nan", "inf", "subnormal", "magnitude_total", "magnitude_squares",
)  # fmt: skip
"""What `Chunks.sums` finds of each tensor; `squares` are squared deviations from the mean, as in `trimtab.moments`."""
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
        looks: bool | None = None,
    ) -> None:
        device = torch.device(device)
        self.looks = device.type == "cpu" if looks is None else looks
        block = BLOCK_ON_CPU if device.type == "cpu" else BLOCK_ON_ACCELERATOR
        counts = [-(-size // CHUNK) for size in sizes]
        self.number = sum(counts)
        valid = []  # elements of each chunk
        for size, count in zip(sizes, counts, strict=True):
            if count:
                valid += [CHUNK] * (count - 1) + [size - (count - 1) * CHUNK]
        owners = [tensor for tensor, count in enumerate(counts) for _ in range(count)]
        self.lengths = torch.tensor(counts, device=device)
        self.valid = torch.tensor(valid, dtype=torch.float64, device=device)
        self.elements = torch.tensor(sizes, dtype=torch.float64, device=device)
        self.owners = torch.tensor(owners, dtype=torch.long, device=device)
        self.padding = self.lengths * CHUNK - self.elements
        self.blocks = _blocks(sizes, block)
        largest = max((part.chunks.stop - part.chunks.start for part in self.blocks), default=0) * CHUNK
        self._copy = torch.empty(largest, dtype=dtype, device=device)
        self._work = torch.empty(largest, dtype=dtype, device=device)
        self._zeros = torch.zeros(CHUNK, dtype=dtype, device=device)

    def _gather(self, block: Block, flats: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The block's elements, shape (chunks, CHUNK), and a work space of that shape."""
        stretches = []
        for tensor, start, stop, padding in block.parts:
            flat = flats[tensor]
            stretches.append(flat if stop - start == flat.numel() else flat[start:stop])
            if padding:
                stretches.append(self._zeros[:padding])
        length = (block.chunks.stop - block.chunks.start) * CHUNK
        used = self._copy[:length]
        torch.cat(stretches, out=used)
        return used.view(-1, CHUNK), self._work[:length].view(-1, CHUNK)

    def sums(self, flats: Sequence[Tensor], wanted: set[str], smallest_normal: float = 0.0) -> Tensor:
        """What `COLUMNS` says of each tensor, shape (tensors, columns), float64; columns that are not wanted hold 0.

        Args:
            flats: one-dimensional tensors of the sizes given, of any real dtype.
            wanted: column names; "total" and "squares" are always found, one of the magnitudes' brings both.
            smallest_normal: values below it in magnitude, zeros apart, are counted as subnormal.
        """
        whole = moments(flats) if self.looks else None
        if whole is not None and not wanted - {"total", "squares"}:
            rows = torch.zeros(len(flats), len(COLUMNS), dtype=torch.float64)
            rows[:, PLACE["total"]], rows[:, PLACE["squares"]] = whole.total, whole.squares
            return rows
        # squared deviations are finite in float64 exactly where all values are
        finite = whole is not None and bool(whole.squares.isfinite().all())
        kept = torch.zeros(self.number, len(COLUMNS), dtype=torch.float64, device=self.valid.device)
        for block in self.blocks:
            values, work = self._gather(block, flats)
            row = kept[block.chunks]
            if whole is None:
                row[:, 0], row[:, 1] = self._moments(values, work, self.valid[block.chunks])
            self._fill(
                row,
                values,
                work,
                self.valid[block.chunks],
                wanted - {"nan", "inf"} if finite else wanted,
                smallest_normal,
            )
        rows = self._over_chunks(kept)
        if whole is None:
            rows[:, PLACE["squares"]] = self._squares(kept, rows, "total", "squares")
        else:
            rows[:, PLACE["total"]], rows[:, PLACE["squares"]] = whole.total, whole.squares
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

    def _fill(
        self, kept: Tensor, values: Tensor, work: Tensor, valid: Tensor, wanted: set[str], smallest_normal: float
    ) -> None:
        """Write each chunk's row, the moments of the values apart; `values` are used up."""
        if not wanted - {"total", "squares"}:
            return
        magnitudes = values.abs_()
        if "magnitude_squares" in wanted:
            kept[:, PLACE["magnitude_total"]], kept[:, PLACE["magnitude_squares"]] = self._moments(
                magnitudes, work, valid
            )
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

    def _moments(self, values: Tensor, work: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Sum and squared deviations of each chunk, float64."""
        if not self.looks:
            return careful_moments(values, valid)
        total = values.sum(1).double()
        second = torch.mul(values, values, out=work).sum(1).double()
        of_mean = total * total / valid
        squares = second - of_mean
        low, high = SAFE_SQUARES
        doubtful = ((2 * of_mean <= second) & (second > low) & (second < high)).logical_not_().nonzero().flatten()
        if doubtful.numel():
            total[doubtful], squares[doubtful] = careful_moments(values[doubtful], valid[doubtful])
        return total, squares

    def _over_chunks(self, kept: Tensor) -> Tensor:
        return torch.segment_reduce(kept, "sum", lengths=self.lengths, axis=0, unsafe=True)

    def _squares(self, kept: Tensor, rows: Tensor, total: str, squares: str) -> Tensor:
        """`sum M2_c + n_c (m_c - m)^2` over the chunks of each tensor."""
        mean = rows[:, PLACE[total]] / self.elements
        away = kept[:, PLACE[total]] / self.valid - mean[self.owners]
        return self._over_chunks(kept[:, PLACE[squares]] + self.valid * away.square_())

    def below(self, flats: Sequence[Tensor], limits: Tensor) -> Tensor:
        """How many magnitudes of each tensor are below its limit, which is positive or NaN (then NaN); shape (tensors,)."""
        kept = torch.zeros(self.number, dtype=torch.float64, device=self.valid.device)
        of_chunk = limits.to(self._copy.dtype)[self.owners].unsqueeze(1)
        for block in self.blocks:
            values, work = self._gather(block, flats)
            kept[block.chunks] = torch.lt(values.abs_(), of_chunk[block.chunks], out=work).sum(1)
        return self._over_chunks(kept) - self.padding + 0 * limits


def _blocks(sizes: Sequence[int], most: int) -> list[Block]:
    """Cut and gather, at most `most` elements (a multiple of CHUNK) at a time, padding included."""
    blocks: list[Block] = []
    parts: list[Part] = []
    begin = end = 0
    for tensor, size in enumerate(sizes):
        for start in range(0, size, most):
            stop = min(start + most, size)
            chunks = -(-(stop - start) // CHUNK)
            if parts and (end - begin + chunks) * CHUNK > most:
                blocks.append(Block(parts, slice(begin, end)))
                parts, begin = [], end
            parts.append(Part(tensor, start, stop, chunks * CHUNK - (stop - start)))
            end += chunks
    return [*blocks, Block(parts, slice(begin, end))] if parts else blocks


def careful_moments(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and squared deviations of the first `valid` entries of each row, float64: scaled by a power of two, around the mean.

    Args:
        values: shape (rows, columns); what lies beyond the valid entries is 0.
        valid: shape (rows,), float64, at least 1.

    Example:
        >>> total, squares = careful_moments(torch.tensor([[1e-30, 3e-30]]), torch.tensor([2.0]).double())
        >>> round(total.item() * 1e30, 6), round(squares.item() * 1e60, 6)
        (4.0, 2.0)
    """
    exponent = torch.frexp(values.abs().amax(1)).exponent
    # 2^-exponent, exact, made of its bits
    if values.dtype == torch.float64:
        scale = ((1023 - exponent.long().clamp(-1000, 1000)) << 52).view(torch.float64)
    else:
        scale = ((127 - exponent.clamp(-125, 125)) << 23).view(torch.float32)
    scaled = values * scale.unsqueeze(1)
    shift = (scaled.sum(1).double() / valid).to(values.dtype)
    scaled -= shift.unsqueeze(1)
    beyond = torch.arange(values.shape[1], device=values.device) >= valid.unsqueeze(1)
    scaled.masked_fill_(beyond, 0)
    left = scaled.sum(1).double()
    squares = (scaled.square_().sum(1).double() - left * left / valid).clamp_(min=0)
    unit = 1 / scale.double()
    return (valid * shift.double() + left) * unit, squares * unit * unit

"""Code books: a byte for each number, the index of one of up to 256 entries, times the largest magnitude of its block."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from trimtab.checks import one_of, whole

Map = Literal["dynamic", "linear"]
CHUNK_CPU, CHUNK_GPU = 1 << 18, 1 << 22
_CELLS = 1 << 16


class Codes(NamedTuple):
    """A tensor in codes.

    Attributes:
        codes: uint8, one for each entry in the order of the elements; shape (n,).
        absmax: float32, the largest magnitude of each block; shape (ceil(n / block),).
    """

    codes: Tensor
    absmax: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes that both take."""
        return self.codes.numel() + 4 * self.absmax.numel()


@functools.cache
def code_book(name: Map = "dynamic", bits: int = 8, *, signed: bool = True) -> Tensor:
    """The 2^bits entries from -1 (0 where unsigned) to 1, ascending; float32.

    "dynamic" (arXiv 2110.02861, as bitsandbytes builds it): for i = 0 .. bits - 2 the middles of 2^i (unsigned 2^(i+1)) equal
    parts of [0.1, 1], times 10^(i - bits + 2), with both signs where signed; 0 and 1. Small entries keep their size, large
    ones their digits. "linear": equal steps.

    Raises:
        ValueError: an unknown name, bits outside 4..8.

    Example:
        >>> code_book()[-2:], len(code_book(signed=False))
        (tensor([0.9930, 1.0000]), 256)
    """
    one_of("map", name, get_args(Map))
    whole("bits of a code", bits, 4, 8)
    if name == "linear":
        top = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
        steps: Tensor = torch.arange(-top - 1 if signed else 0, top + 1).clamp_(min=-top).float() / top
        return steps
    entries = [0.0, 1.0]
    for i in range(bits - 1):
        bounds = torch.linspace(0.1, 1, 2 ** (i + (not signed)) + 1, dtype=torch.float32)
        middles = (10.0 ** (i - bits + 2) * ((bounds[:-1] + bounds[1:]) / 2)).tolist()
        entries += middles + [-each for each in middles] * signed
    return torch.tensor(sorted(entries), dtype=torch.float32)


@functools.cache
def _cells(name: Map, bits: int, *, signed: bool, floor: bool) -> Tensor:
    """For each upper half of a number's key a whole number that, added to the key, has the code in its upper half.

    The key is the float32's pattern as a whole number, of negative numbers its negative (`2^31 - |pattern|`), so that it grows
    with the number among those of one sign. The whole number is the code of the lowest number of that upper half, what carries
    from the bound on above which the next one begins, less the upper half itself. Bounds lie further apart than numbers that
    share an upper half, so that one carry finds the code.
    """
    book = code_book(name, bits, signed=signed)
    bounds = (book[1:].double() + book[:-1].double()).div_(2).float()
    if floor:  # what lies above 0 is not nearer to it than to the next
        bounds[int((book == 0).nonzero()[-1])] = 0.0
    upper = torch.arange(_CELLS, dtype=torch.int64)
    positive = upper <= 0x3F80  # up to 1; numbers from -1 on begin at 0x4080
    keys = [upper << 16 | low for low in (0, 0xFFFF)]
    ends = [torch.where(positive, key, -key).to(torch.int32).view(torch.float32) for key in keys]
    lowest, highest = torch.minimum(*ends), torch.maximum(*ends)
    first, last = (torch.bucketize(end.nan_to_num(0.0), bounds) for end in (lowest, highest))
    inside = (lowest.abs() <= 1) & (highest.abs() <= 1)
    assert bool(((last - first)[inside] <= 1).all())
    following = torch.cat([bounds, torch.tensor([torch.inf])])[first].view(torch.int32).long().abs()
    carry = torch.where(following >> 16 == upper, 0xFFFF - (following & 0xFFFF), 0)
    return ((first.long() << 16 | carry) - (upper << 16)).to(torch.int32)


@torch.no_grad()
def encode(
    x: Tensor,
    name: Map = "dynamic",
    bits: int = 8,
    block: int = 256,
    *,
    signed: bool = True,
    floor: bool = False,
    rounding: Literal["nearest", "stochastic"] = "nearest",
    generator: torch.Generator | None = None,
) -> Codes:
    """`x` in codes: the nearest entry to x over its block's largest magnitude, of two as near the smaller.

    A block of zeros has absmax 0 and the codes of 0; one with a NaN or an infinity a NaN, which shows when it is decoded.

    Args:
        x: any real floating-point tensor; the last block may be shorter.
        name, bits, signed: of the code book.
        block: entries that share a largest magnitude, a power of two of 16 or more; default 256 (bitsandbytes; the paper 2048).
        floor: numbers above 0 never get the code of 0, but of the smallest entry above it [ours].
        rounding: "stochastic": one of the two entries around, so that the mean is the number [ours].
        generator: for that.

    Raises:
        ValueError: an unknown map, bits or block out of range, negative numbers where unsigned.

    Example:
        >>> decode(encode(torch.tensor([1.0, -0.5, 0.0])), (3,))
        tensor([ 1.0000, -0.5008,  0.0000])
    """
    check_block(block)
    coder = Coder(name, bits, block, signed=signed, floor=floor, stochastic=rounding == "stochastic", device=x.device)
    return coder.encoded(x, generator)


@torch.no_grad()
def decode(
    codes: Codes, shape: tuple[int, ...], name: Map = "dynamic", bits: int = 8, block: int = 256, *, signed: bool = True
) -> Tensor:
    """The numbers: entry times largest magnitude; float32 of the shape given."""
    device = codes.codes.device
    return Coder(name, bits, block, signed=signed, device=device).decoded(codes).view(shape)


class Coder:
    """Encodes and decodes stretches of at most `size` numbers with buffers that stay in a processor's cache.

    Args:
        name, bits, block, signed, floor: as for `encode`.
        stochastic: whether codes are drawn.
        device: of the numbers.
    """

    def __init__(
        self, name: Map = "dynamic", bits: int = 8, block: int = 256, *, signed: bool = True, floor: bool = False,
        stochastic: bool = False, device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        self.block, self.signed, self.floor, self.stochastic = block, signed, floor, stochastic
        self.size = max((CHUNK_CPU if torch.device(device).type == "cpu" else CHUNK_GPU) // block, 1) * block
        self.book = code_book(name, bits, signed=signed).to(device)
        self._patterns = self.book.view(torch.int32)
        self.cells = _cells(name, bits, signed=signed, floor=floor).to(device)
        self._floats: dict[int, Tensor] = {}
        self._whole: dict[int, Tensor] = {}
        self._device = device

    def _buffer(self, kept: dict[int, Tensor], place: int, count: int, dtype: torch.dtype) -> Tensor:
        if place not in kept or kept[place].numel() < count:
            kept[place] = torch.empty(max(count, min(self.size, 1024)), dtype=dtype, device=self._device)
        return kept[place] if kept[place].numel() == count else kept[place][:count]

    def encoded(self, x: Tensor, generator: torch.Generator | None = None, out: Codes | None = None) -> Codes:
        """A tensor of any size in codes, in `out` where it fits; ValueError for a negative number where codes have no sign."""
        flat, block = x.detach().reshape(-1), self.block
        if out is not None and len(out.codes) == len(flat) and out.codes.device == x.device:
            codes, absmax = out
        else:
            codes = torch.empty(len(flat), dtype=torch.uint8, device=x.device)
            absmax = torch.empty(-(-len(flat) // block), dtype=torch.float32, device=x.device)
        for start in range(0, len(flat), self.size):
            part = flat[start : start + self.size]
            first = start // block
            own = absmax[first : first + -(-len(part) // block)]
            self.encode(part, codes[start : start + self.size], own, generator)
        if not self.signed and bool((absmax < 0).any()):
            raise ValueError(f"unsigned codes are of numbers from 0 on, got {float(absmax.min()):g}")
        return Codes(codes, absmax)

    def decoded(self, codes: Codes, out: Tensor | None = None) -> Tensor:
        """All the numbers in one dimension, float32; into `out` where given."""
        flat = torch.empty(len(codes.codes), dtype=torch.float32, device=codes.codes.device) if out is None else out
        for start in range(0, len(flat), self.size):
            part = slice(start, start + self.size)
            self.decode(codes.codes[part], codes.absmax[start // self.block :], flat[part])
        return flat

    def encode(self, x: Tensor, codes: Tensor, absmax: Tensor, generator: torch.Generator | None = None) -> None:
        """One stretch into codes and largest magnitudes; an unsigned block with a negative number gets a negative one."""
        given, count = x.numel(), absmax.numel() * self.block
        if given < count or x.dtype != torch.float32 or not x.is_contiguous():
            wide = self._buffer(self._floats, 0, count, torch.float32)
            wide[:given].copy_(x)
            wide[given:] = 0
            x = wide
        blocks = x.view(-1, self.block)
        high, low = blocks.amax(1), blocks.amin(1)
        torch.maximum(low.neg(), high, out=absmax)
        absmax.add_(absmax - absmax)  # NaN where it is no number
        if not self.signed:
            absmax.copy_(torch.where(low < 0, low, absmax))
        scaled = self._buffer(self._floats, 1, count, torch.float32)
        torch.div(blocks, torch.where(absmax > 0, absmax, 1.0)[:, None], out=scaled.view(-1, self.block))
        if self.stochastic:
            self._draw(scaled, codes, generator)
            return
        key, upper = scaled.view(torch.int32), self._buffer(self._whole, 0, count, torch.int32)
        if self.signed:
            key.abs_()
        torch.bitwise_right_shift(key, 16, out=upper).bitwise_and_(0xFFFF)
        cell = torch.index_select(self.cells, 0, upper, out=self._buffer(self._whole, 1, count, torch.int32))
        cell.add_(key).bitwise_right_shift_(16)
        codes.copy_(cell if count == given else cell[:given])

    def _draw(self, scaled: Tensor, codes: Tensor, generator: torch.Generator | None) -> None:
        at = torch.bucketize(scaled.nan_to_num(0.0), self.book, right=True).clamp_(1, len(self.book) - 1)
        below, above = self.book[at - 1], self.book[at]
        uniform = torch.rand(scaled.shape, generator=generator, device=scaled.device)
        drawn = at - (uniform * (above - below) >= scaled - below).long()
        if self.floor:
            zero = int((self.book == 0).nonzero()[0])
            drawn += (drawn == zero) & (scaled > 0)
        codes.copy_(drawn[: len(codes)])

    def decode(self, codes: Tensor, absmax: Tensor, out: Tensor) -> None:
        """Entries times largest magnitudes, into float32; `absmax` may go on."""
        count = codes.numel()
        place = self._buffer(self._whole, 0, count, torch.int32).copy_(codes)
        torch.index_select(self._patterns, 0, place, out=out.view(torch.int32))  # faster than the same of floats
        full = count // self.block
        out[: full * self.block].view(-1, self.block).mul_(absmax[:full, None])
        if full * self.block < count:
            out[full * self.block :].mul_(absmax[full])


def check_block(block: int) -> int:
    """A power of two of 16 or more; ValueError otherwise."""
    whole("block", block)
    if block < 16 or block & (block - 1):
        raise ValueError(f"block must be a power of two of 16 or more, got {block}")
    return block

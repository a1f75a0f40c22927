"""Code books: a byte for each number, the index of one of up to 256 entries, times the largest magnitude of its block."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from trimtab.checks import one_of, whole

Map = Literal["dynamic", "linear"]
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
        return torch.arange(-top - 1 if signed else 0, top + 1).clamp_(min=-top).float() / top
    entries = [0.0, 1.0]
    for i in range(bits - 1):
        bounds = torch.linspace(0.1, 1, 2 ** (i + (not signed)) + 1, dtype=torch.float32)
        middles = (10.0 ** (i - bits + 2) * ((bounds[:-1] + bounds[1:]) / 2)).tolist()
        entries += middles + [-each for each in middles] * signed
    return torch.tensor(sorted(entries), dtype=torch.float32)


@functools.cache
def _cells(name: Map, bits: int, *, signed: bool) -> tuple[Tensor, Tensor]:
    """For each upper half of a float32 its lowest number's code, and the bound above which the next one begins.

    Bounds lie further apart than numbers that share an upper half, so that one comparison finds the code.
    """
    book = code_book(name, bits, signed=signed)
    bounds = (book[1:].double() + book[:-1].double()).div_(2).float()
    pattern = torch.arange(_CELLS, dtype=torch.int64)
    ends = [(pattern << 16 | low).to(torch.int32).view(torch.float32) for low in (0, 0xFFFF)]
    lowest, highest = torch.minimum(*ends), torch.maximum(*ends)
    first, last = (torch.bucketize(end.nan_to_num(0.0), bounds) for end in (lowest, highest))
    inside = (lowest.abs() <= 1) & (highest.abs() <= 1)
    assert bool(((last - first)[inside] <= 1).all())
    following = torch.cat([bounds, torch.tensor([torch.inf])])
    return first.to(torch.uint8), following[first]


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
    book = code_book(name, bits, signed=signed).to(x.device)
    flat = x.detach().reshape(-1).float()
    short = -len(flat) % block
    blocks = torch.nn.functional.pad(flat, (0, short)).view(-1, block)
    low, high = blocks.amin(1), blocks.amax(1)
    if not signed and bool((low < 0).any()):
        raise ValueError(f"unsigned codes are of numbers from 0 on, got {float(low.min()):g}")
    absmax = torch.maximum(low.neg(), high)
    absmax = absmax + (absmax - absmax)  # NaN where it is no number
    scaled = blocks / torch.where(absmax > 0, absmax, 1.0)[:, None]
    if rounding == "nearest":
        table, following = (each.to(x.device) for each in _cells(name, bits, signed=signed))
        cell = (scaled.view(torch.int32) >> 16).bitwise_and_(0xFFFF).view(-1)
        codes = table.index_select(0, cell)
        codes += scaled.view(-1) > following.index_select(0, cell)
    else:
        at = torch.bucketize(scaled.nan_to_num(0.0).view(-1), book, right=True).clamp_(1, len(book) - 1)
        below, above = book[at - 1], book[at]
        uniform = torch.rand(scaled.shape, generator=generator, device=x.device).view(-1)
        codes = (at - (uniform * (above - below) >= scaled.view(-1) - below).long()).to(torch.uint8)
    if floor:
        zero = int((book == 0).nonzero()[0])
        codes += (codes == zero) & (scaled.view(-1) > 0)
    return Codes(codes[: len(flat)].clone() if short else codes, absmax)


@torch.no_grad()
def decode(
    codes: Codes, shape: tuple[int, ...], name: Map = "dynamic", bits: int = 8, block: int = 256, *, signed: bool = True
) -> Tensor:
    """The numbers: entry times largest magnitude; float32 of the shape given."""
    book = code_book(name, bits, signed=signed).to(codes.codes.device)
    flat = book.index_select(0, codes.codes.int())
    full = len(flat) // block * block
    flat[:full].view(-1, block).mul_(codes.absmax[: full // block, None])
    if full < len(flat):
        flat[full:].mul_(codes.absmax[-1])
    return flat.view(shape)


def check_block(block: int) -> int:
    """A power of two of 16 or more; ValueError otherwise."""
    whole("block", block)
    if block < 16 or block & (block - 1):
        raise ValueError(f"block must be a power of two of 16 or more, got {block}")
    return block

"""Quantised weights as streams of symbols: the numbers themselves, or the non-zero ones and the gaps before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from trimtab.deploy import rans
from trimtab.deploy.one_file_reader import SYMBOLS, frequencies
from trimtab.deploy.rans import Bytes, Integers

SPARSE = 0.25  # [ours] at most so many non-zeros: gaps cost the same bytes and decode several times faster


@dataclass(frozen=True)
class Stream:
    """Symbols from 0 on, the code of their table, the frequencies it gives, and the packed low bits."""

    symbols: Integers
    least: int
    table: Bytes
    frequencies: Integers
    low_bits: Bytes

    @property
    def bits(self) -> float:
        """What coding it takes, but for the table: cross-entropy under the table, and low bits."""
        counts = np.bincount(self.symbols)
        there = np.flatnonzero(counts)
        return float((counts[there] * (16 - np.log2(self.frequencies[there]))).sum()) + 8 * self.low_bits.size


def _stream(numbers: npt.NDArray[np.integer[Any]]) -> Stream:
    symbols, least, low_bits = rans.to_symbols(numbers)
    counts = np.bincount(symbols, minlength=1)
    if not symbols.size:
        counts = np.ones(1, np.int64)
    codes = rans.table(counts)
    return Stream(symbols, least, codes, frequencies(codes), low_bits)


@dataclass(frozen=True)
class Coded:
    """One tensor: its streams, how many of its numbers are not zero, and the order-0 entropy of the numbers."""

    streams: tuple[Stream, ...]
    nonzeros: int | None
    entropy_bits: float

    @property
    def size(self) -> float:
        """Bytes, the tables about as zlib packs them."""
        return sum(stream.bits / 8 + len(stream.table) / 2 for stream in self.streams)

    @property
    def numbers(self) -> list[int | None]:
        """Least and largest symbol, non-zeros, widest gap: the end of the tensor's row in the index."""
        values = self.streams[0]
        widest = len(self.streams[1].table) - 1 if self.nonzeros is not None else 0
        return [values.least, values.least + len(values.table) - 1, self.nonzeros, widest]


def order_0_bits(numbers: npt.NDArray[np.int16]) -> float:
    """`n H` of the numbers as they are, H the entropy of their histogram."""
    return rans.entropy_bits(np.bincount(numbers.astype(np.int64) + 2**15))


def coded(numbers: npt.NDArray[np.int16]) -> Coded:
    """The streams of the flat numbers of a tensor.

    Example:
        >>> found = coded(np.array([0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0], dtype=np.int16))
        >>> found.nonzeros, [(stream.symbols + stream.least).tolist() for stream in found.streams]
        (1, [[5], [7]])
    """
    entropy = order_0_bits(numbers)
    where = np.flatnonzero(numbers)
    if where.size <= SPARSE * numbers.size:
        gaps = np.diff(where, prepend=-1) - 1
        if int(gaps.max(initial=0)) < 2**24:
            values, places = _stream(numbers[where]), _stream(gaps)
            if len(places.table) < SYMBOLS:
                return Coded((values, places), where.size, entropy)
    return Coded((_stream(numbers),), None, entropy)

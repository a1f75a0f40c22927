"""The entropy code of compact files: whole numbers into few bits, next to their order-0 entropy.

A number becomes a *symbol* and low bits. Magnitudes below 32 are symbols of their own; above, 16 symbols
share each octave and the rest follows as plain low bits: the odds hardly change within a sixteenth of a value.

Symbols are coded by range ANS (J. Duda, arXiv 1311.2540) with one table of frequencies for each tensor and many interleaved
states (F. Giesen, arXiv 1402.3392), so that NumPy codes a row of symbols in a few operations. A state x in [2^24, 2^40)
takes a symbol of frequency f and start c (both of 2^16): `x <- (x // f) 2^16 + x mod f + c`; where x would reach 2^40 its low
16 bits go out first. The decoder stands in `one_file_reader`, which is also how trimtab reads compact files: there is one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from trimtab.deploy.one_file_reader import LANES, LEAST, TOTAL, frequencies

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]
BLOCK = 1 << 18  # symbols looked up at a time
BYTES_PER_LANE = 400  # [ours] a lane costs about 4 bytes: 1 %


class Symbols(NamedTuple):
    """Symbols of one tensor from 0 on, the least one as it was (`low`), and the packed low bits."""

    symbols: Integers
    least: int
    low_bits: Bytes


def to_symbols(numbers: npt.NDArray[np.integer[Any]]) -> Symbols:
    """Split whole numbers within +-2^26 into symbols and low bits.

    Example:
        >>> split = to_symbols(np.array([-1, 0, 31, 33], dtype=np.int16))
        >>> (split.symbols + split.least).tolist(), split.low_bits.tolist()
        ([-1, 0, 31, 32], [1])
    """
    wide = numbers.astype(np.int32, copy=False)
    magnitudes = np.abs(wide)
    shift = np.maximum(np.frexp(magnitudes.astype(np.float64))[1] - 5, 0)
    signed = np.sign(wide) * (16 * shift + (magnitudes >> shift))
    parts = [np.empty(0, np.uint8)]
    for amount in range(1, int(shift.max(initial=0)) + 1):
        own = magnitudes[shift == amount]
        parts.append(((own[:, None] >> np.arange(amount)) & 1).astype(np.uint8).reshape(-1))
    least = int(signed.min(initial=0))
    return Symbols(signed.astype(np.int64) - least, least, np.packbits(np.concatenate(parts), bitorder="little"))


def entropy_bits(counts: Integers) -> float:
    """`-sum n_s log2(n_s / n)`: no code that gives each symbol its own fixed odds takes fewer bits.

    Example:
        >>> entropy_bits(np.array([2, 2, 4, 0]))
        12.0
    """
    seen = counts[counts > 0]
    return float((seen * np.log2(seen.sum() / seen)).sum()) + 0.0


def table(counts: Integers) -> Bytes:
    """Logarithms of the counts in eighths of an octave, coarser where the shorter table saves more than the odds lose.

    Example:
        >>> frequencies(table(np.array([900, 0, 100]))).tolist()
        [59303, 0, 6233]
    """
    logarithms = np.log2(np.maximum(counts, 1) / counts.sum() * TOTAL)
    best: tuple[float, Bytes] | None = None
    for step in (1, 2, 4):
        codes = step * np.round(np.maximum(logarithms, 0) * 8 / step)
        codes = np.where(counts > 0, np.clip(codes + 8, 1, 160), 0).astype(np.uint8)
        bits = float((counts * np.log2(TOTAL / np.maximum(frequencies(codes), 1))).sum())
        size = bits / 8 + len(zlib.compress(np.diff(codes, prepend=np.uint8(0)).tobytes(), 9)) - 8
        if best is None or size < best[0]:
            best = size, codes
    assert best is not None
    return best[1]


def lanes_for(code_bytes: float) -> int:
    """How many states share a stream of about so many bytes.

    Example:
        >>> lanes_for(100), lanes_for(60_000), lanes_for(1e9)
        (1, 150, 4096)
    """
    return max(1, min(LANES, int(code_bytes / BYTES_PER_LANE)))


def encode(tensors: Sequence[tuple[Integers, Integers]], lanes: int) -> bytes:
    """The stream of all tensors, given (symbols, frequencies): the states of 5 bytes each, then the words.

    Coded from the last symbol to the first, since states give back what they took last.
    """
    state = np.full(lanes, LEAST, np.int64)
    words: list[npt.NDArray[np.uint16]] = []
    for symbols, frequency in reversed(tensors):
        start = np.cumsum(frequency) - frequency
        rows_at_once = max(1, BLOCK // lanes)
        rows = math.ceil(symbols.size / lanes)
        for top in range(rows, 0, -rows_at_once):
            bottom = max(0, top - rows_at_once)
            block = symbols[bottom * lanes : top * lanes]
            odds, starts = frequency[block], start[block]
            for first in range((top - bottom - 1) * lanes, -1, -lanes):
                f = odds[first : first + lanes]
                own = state[: f.size]
                full = np.flatnonzero(own >= f << 24)
                if full.size:
                    words.append((own[full] & 0xFFFF).astype(np.uint16))
                    own[full] >>= 16
                quotient = own // f
                own += quotient * (TOTAL - f) + starts[first : first + lanes]
    content = np.concatenate([np.empty(0, np.uint16), *reversed(words)]).astype("<u2")
    return state.astype("<i8").view(np.uint8).reshape(lanes, 8)[:, :5].tobytes() + content.tobytes()

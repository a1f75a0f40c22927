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
BYTES_PER_LANE = 300  # [ours] a lane costs about a byte, where its start holds three of others: 0.3 %


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
        (1, 200, 4096)
    """
    return max(1, min(LANES, int(code_bytes / BYTES_PER_LANE)))


class Tabled(NamedTuple):
    """Symbols, and the frequencies that sum to 2^16."""

    symbols: Integers
    frequency: Integers

    def odds(self, block: slice) -> tuple[Integers, Integers]:
        """Frequency and start of each symbol of a block."""
        start = np.cumsum(self.frequency) - self.frequency
        own = self.symbols[block]
        return self.frequency[own], start[own]

    @property
    def length(self) -> int:
        """How many."""
        return self.symbols.size


class Answers(NamedTuple):
    """Yes or no, and the chance of a yes of 2^16."""

    answers: npt.NDArray[np.bool_]
    chances: npt.NDArray[np.uint16]

    def odds(self, block: slice) -> tuple[Integers, Integers]:
        """Frequency and start of each answer of a block."""
        own, yes = self.answers[block], self.chances[block].astype(np.int64)
        return np.where(own, yes, TOTAL - yes), np.where(own, 0, yes)

    @property
    def length(self) -> int:
        """How many."""
        return self.answers.size


def encode(steps: Sequence[Tabled | Answers], lanes: int, begin: bytes = b"") -> bytes:
    """The stream of all steps: the states of 5 bytes each, then the words.

    Coded from the last symbol to the first, since states give back what they took last; so the decoder's states end as
    they begin here, with up to three bytes of `begin` each.
    """
    first = np.zeros((lanes, 8), np.uint8)
    first[:, :3] = np.frombuffer(begin.ljust(3 * lanes, b"\0"), np.uint8).reshape(lanes, 3)
    state = LEAST + first.view("<i8")[:, 0].astype(np.int64)
    words: list[npt.NDArray[np.uint16]] = []
    for step in reversed(steps):
        rows_at_once = max(1, BLOCK // lanes)
        rows = math.ceil(step.length / lanes)
        for top in range(rows, 0, -rows_at_once):
            bottom = max(0, top - rows_at_once)
            odds, starts = step.odds(slice(bottom * lanes, top * lanes))
            for row in range((top - bottom - 1) * lanes, -1, -lanes):
                f = odds[row : row + lanes]
                own = state[: f.size]
                full = np.flatnonzero(own >= f << 24)
                if full.size:
                    words.append((own[full] & 0xFFFF).astype(np.uint16))
                    own[full] >>= 16
                quotient = own // f
                own += quotient * (TOTAL - f) + starts[row : row + lanes]
    content = np.concatenate([np.empty(0, np.uint16), *reversed(words)]).astype("<u2")
    return state.astype("<i8").view(np.uint8).reshape(lanes, 8)[:, :5].tobytes() + content.tobytes()

"""Where the non-zero weights stand, in few bits: Golomb-Rice codes of the gaps between them.

The gap before a non-zero is the number of zeros since the one before it. With parameter k a gap g is written as its
k low bits and, in unary, as `g >> k` zeros followed by a one. All low bits stand first, packed k by k, then all unary
codes. Two special cases carry names of their own: k = 0 has no low bits and its unary stream is the plain bitmask
up to the last non-zero; a larger k is a gap code. Bits are packed from the least significant end of each byte.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


def _bits(gaps: Integers, k: int) -> int:
    """Length of the code: k low bits, a unary one and `gap >> k` zeros for each gap."""
    return gaps.size * (k + 1) + int((gaps >> k).sum())


def best_parameter(gaps: Integers) -> int:
    """The k with the shortest code, the smallest one in a tie.

    Near the optimum of a geometric distribution (k = log2(mean gap * ln 2)) three values are tried, and k = 0.

    Example:
        >>> best_parameter(np.full(100, 16)), best_parameter(np.zeros(100, dtype=np.int64))
        (3, 0)
    """
    if gaps.size == 0:
        return 0
    mean = float(gaps.mean())
    centre = max(0, round(math.log2(max(mean * math.log(2), 1.0))))
    candidates = sorted({0, max(0, centre - 1), centre, centre + 1})
    return min(candidates, key=lambda k: _bits(gaps, k))


def encode(positions: Integers) -> tuple[int, Bytes]:
    """Code strictly increasing positions.

    Args:
        positions: int64, each 0 or more, strictly increasing.

    Returns:
        k and the packed bytes: `ceil(n k / 8)` of low bits, then the unary codes; nothing for no positions.

    Example:
        >>> k, packed = encode(np.array([0, 2, 3]))
        >>> k, [f"{byte:08b}" for byte in packed]
        (0, ['00001101'])
    """
    count = positions.size
    if count == 0:
        return 0, np.empty(0, dtype=np.uint8)
    gaps = np.diff(positions, prepend=-1) - 1
    k = best_parameter(gaps)
    ones = np.cumsum((gaps >> k) + 1) - 1
    unary = np.zeros(int(ones[-1]) + 1, dtype=np.uint8)
    unary[ones] = 1
    packed = np.packbits(unary, bitorder="little")
    if k == 0:
        return k, packed
    low_bits = ((gaps[:, None] >> np.arange(k)) & 1).astype(np.uint8)
    return k, np.concatenate([np.packbits(low_bits.reshape(-1), bitorder="little"), packed])


def decode(packed: Bytes, count: int, k: int, length: int) -> Integers:
    """The positions that `encode` packed; checks everything before it allocates by `count` or `length`.

    Args:
        packed: all the bytes of the code and no more.
        count: number of positions.
        k: parameter of the code.
        length: positions must be below it.

    Raises:
        ValueError: the bytes are no code of `count` positions below `length`.

    Example:
        >>> decode(np.array([0b1101], dtype=np.uint8), count=3, k=0, length=4)
        array([0, 2, 3])
    """
    if not 0 <= count <= length:
        raise ValueError(f"{count} non-zeros do not fit into {length} elements")
    if count == 0:
        if packed.size or k:
            raise ValueError("position bytes for a tensor without non-zeros")
        return np.empty(0, dtype=np.int64)
    if k < 0 or k > 62 or 1 << k > length:
        raise ValueError(f"parameter k = {k} does not fit {length} elements")
    low_bytes = (count * k + 7) // 8
    if packed.size <= low_bytes:
        raise ValueError(f"{packed.size} position bytes are too few for {count} non-zeros with k = {k}")
    unary = np.unpackbits(packed[low_bytes:], bitorder="little")
    ones = np.flatnonzero(unary.view(np.bool_))
    if ones.size != count:
        raise ValueError(f"the unary stream holds {ones.size} codes, expected {count}")
    if unary.size - int(ones[-1]) > 8:
        raise ValueError("bytes left over after the last position")
    # Quotients alone must fit already, so that no shift below can overflow.
    if (int(ones[-1]) + 1 - count << k) + count > length:
        raise ValueError(f"positions reach beyond {length} elements")
    if k == 0:
        return ones
    quotients = np.diff(ones, prepend=-1) - 1
    bits = np.unpackbits(packed[:low_bytes], bitorder="little")
    if bits[count * k :].any():
        raise ValueError("padding bits are not zero")
    gaps = quotients << k
    for bit in range(k):
        gaps |= bits[bit : count * k : k].astype(np.int64) << bit
    positions = np.cumsum(gaps + 1) - 1
    if int(positions[-1]) >= length:
        raise ValueError(f"positions reach beyond {length} elements")
    return positions

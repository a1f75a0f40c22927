"""Block quantisers in NumPy, from their publications: tables instead of bit arithmetic, scales in the published order."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
E2M1 = np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
F = np.float32
MAX = np.finfo(np.float32).max


def e4m3(values: Array) -> NDArray[np.float32]:
    """To nearest, saturating."""
    clipped = np.minimum(values.astype(np.float32), F(448))
    return clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def e4m3_up(values: Array) -> NDArray[np.float32]:
    """The smallest e4m3 that is not below."""
    table = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return table[np.minimum(np.searchsorted(table, values.astype(np.float32), "left"), 126)]


def e2m1(values: Array) -> NDArray[np.float64]:
    """The nearest of the eight magnitudes, ties to the even code; beyond 6 it is 6."""
    magnitude = np.abs(values.astype(np.float64))
    high = np.clip(np.searchsorted(E2M1, magnitude), 1, 7)
    low = high - 1
    up, down = E2M1[high] - magnitude, magnitude - E2M1[low]
    code = np.where(up < down, high, np.where(up > down, low, np.where(high % 2 == 0, high, low)))
    return np.copysign(E2M1[code], values)


def nvfp4(blocks: NDArray[np.float32], up: bool = False, four_over_six: bool = False) -> NDArray[np.float32]:
    """Float32 blocks in rows: arXiv 2509.25149 in TransformerEngine's order of operations, 2512.02010 where asked for."""
    largest = np.abs(blocks).max(initial=0)
    with np.errstate(over="ignore"):
        whole = F(min(F((256 if four_over_six else 448) * 6) / largest, MAX)) if largest else F(1)
    back = F(1) / whole

    def rounded(top: float) -> NDArray[np.float32]:
        wanted = np.abs(blocks).max(1, keepdims=True) * (whole * (F(1) / F(top)))
        decode = (e4m3_up if up else e4m3)(wanted) * back
        encode = np.minimum(F(1) / decode, MAX)
        return e2m1(blocks * encode).astype(np.float32) * decode

    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        six = rounded(6.0)
        if not four_over_six:
            return six
        four = rounded(4.0)
    error = [((each.astype(np.float64) - blocks) ** 2).sum(1, keepdims=True) for each in (six, four)]
    return np.where(error[1] < error[0], four, six)


def mxfp4_unbiased(blocks: NDArray[np.float32], uniform: Array) -> NDArray[np.float32]:
    """arXiv 2502.20586: the block's shared scale, 3/4 of the entries, up where what is cut off exceeds `uniform`, 4/3."""
    largest = np.abs(blocks).max(1, keepdims=True)
    scale = np.exp2(np.floor(np.log2(largest)) - 2).astype(np.float32)
    scaled = blocks / scale * F(0.75)
    magnitude = np.abs(scaled).astype(np.float64)
    low = np.clip(np.searchsorted(E2M1, magnitude, "right") - 1, 0, 6)
    part = (magnitude - E2M1[low]) / (E2M1[low + 1] - E2M1[low])
    return (np.copysign(E2M1[low + (part > uniform)], scaled) * (scale / F(0.75))).astype(np.float32)


def tiles(x: Array, rows: int, columns: int) -> Array:
    """The tiles of a matrix as rows, filled with zeros at the edges."""
    high, wide = -x.shape[0] % rows, -x.shape[1] % columns
    padded = np.pad(x, ((0, high), (0, wide)))
    parts = [np.split(band, padded.shape[1] // columns, axis=1) for band in np.split(padded, padded.shape[0] // rows)]
    return np.stack([part.reshape(-1) for band in parts for part in band])

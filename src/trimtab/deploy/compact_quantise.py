"""Weights as whole numbers times a scale: what a compact file holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.checks import below_one, one_of, whole
from trimtab.deploy.one_file_reader import as_array, rounded_bits
from trimtab.tensors.selection import kth_threshold, removed_count, smallest_masks

Floats = npt.NDArray[np.float32]
Scales = Literal["auto", "channel", "tensor"]
PER_CHANNEL = 256  # [ours] weights in a channel from which a scale of its own (2 bytes) is worth it
SHRUNK = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)  # [ours] shares of the largest weight tried as range at 4 bits and fewer


@dataclass(frozen=True)
class Quantised:
    """`numbers * scale`, rounded to the dtype of the weight.

    Attributes:
        numbers: flat, row-major, within `+-(2^(bits - 1) - 1)`; +-1 (and 0 for zeros) at one bit.
        scales: float32 with the 8 significant bits of bfloat16, so that the product is exact; one, or one for each channel.
        axis: dimension of the channels; None for one scale.
        values: the weight that the network gets, as on the CPU.
        squared_error: sum of squares of what was lost, over that of the weight; 0 for a weight of zeros.
    """

    bits: int
    numbers: npt.NDArray[np.int16]
    scales: Floats
    axis: int | None
    values: Tensor
    squared_error: float

    @property
    def sparsity(self) -> float:
        """Fraction of zeros."""
        return 1 - np.count_nonzero(self.numbers) / self.numbers.size


def checked_bits(name: str, bits: object) -> int:
    """A whole number from 1 to 16."""
    return whole(f"bits of {name}", bits, 1, 16)


def _rounded_up(scales: Floats) -> Floats:
    """The next numbers of bfloat16, so that no weight lies beyond the last step."""
    return ((scales.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)).view(np.float32)


def _pruned(flat: Floats, sparsity: float) -> Floats:
    """A copy with `floor(sparsity n + 0.5)` zeros at least: the smallest magnitudes, first ones first among equals."""
    sizes = [torch.from_numpy(flat)]
    (threshold,) = kth_threshold(sizes, [removed_count(sparsity, flat.size)], absolute=True)
    (zeros,) = smallest_masks(sizes, threshold, absolute=True)
    return np.where(zeros.numpy(), np.float32(0), flat)


def _numbers(rows: Floats, scales: Floats, bits: int) -> Floats:
    if bits == 1:
        return np.sign(rows)
    safe = np.where(scales > 0, scales, np.float32(1))[:, None]
    most = 2 ** (bits - 1) - 1
    return np.clip(np.rint(rows / safe), -most, most)


def _scales(rows: Floats, bits: int) -> Floats:
    """One for each row: the mean magnitude of its non-zeros at one bit, else the least squared error among `SHRUNK`."""
    sizes = np.abs(rows)
    if bits == 1:
        return _rounded_up((sizes.sum(1, dtype=np.float64) / np.maximum((sizes > 0).sum(1), 1)).astype(np.float32))
    largest = sizes.max(1)
    tried = [
        _rounded_up(largest * np.float32(share / (2 ** (bits - 1) - 1)))
        for share in (SHRUNK if bits <= 4 else SHRUNK[:1])
    ]
    errors = (
        [np.square(_numbers(rows, scales, bits) * scales[:, None] - rows).sum(1) for scales in tried]
        if len(tried) > 1
        else [largest]
    )
    best = np.argmin(errors, axis=0)
    found: Floats = np.stack(tried)[best, np.arange(len(rows))]
    return found


def scale_axis(weight: Tensor, axis: int | None, scales: Scales) -> int | None:
    """The axis if scales are kept for each channel: asked for, or with `PER_CHANNEL` weights in each."""
    one_of("scales", scales, get_args(Scales))
    if axis is None or scales == "tensor":
        return None
    return axis if scales == "channel" or weight.numel() >= PER_CHANNEL * weight.shape[axis] else None


@torch.no_grad()
def quantise(name: str, weight: Tensor, bits: int, sparsity: float = 0.0, axis: int | None = None) -> Quantised:
    """Prune `weight` by magnitude, then round it to `bits` bits.

    `q = round(w / s)` with `s` the largest magnitude over `2^(bits - 1) - 1`, rounded up to bfloat16; at 4 bits and fewer the
    shrunken range of least squared error. At one bit `q = sign(w)` and `s` is the mean magnitude of the non-zeros.

    Args:
        name: of the weight, for messages.
        weight: float64, float32, float16 or bfloat16, not empty.
        bits: 1 to 16.
        sparsity: fraction of zeros at least, in [0, 1). Zeros that are there count.
        axis: dimension with a scale for each index; None for one scale.

    Raises:
        ValueError: bits or sparsity out of range; NaN, infinite or too large weights.

    Example:
        >>> quantise("w", torch.tensor([0.1, -0.9, 7.0]), 4).numbers.tolist()
        [0, -1, 7]
    """
    checked_bits(name, bits)
    below_one(f"sparsity of {name}", sparsity)
    given = weight.detach().cpu()
    wide: Floats = given.to(torch.float32).numpy()
    if not np.isfinite(wide).all():
        what = "NaN" if bool(given.isnan().any()) else "infinite weights, or such as float32 does not hold"
        raise ValueError(f"{name} has {what}; a compact file holds finite weights")
    flat = np.ascontiguousarray(wide).reshape(-1)
    pruned = _pruned(flat, sparsity).reshape(wide.shape)
    moved = pruned[None] if axis is None else np.moveaxis(pruned, axis, 0)
    rows = np.ascontiguousarray(moved).reshape(1 if axis is None else wide.shape[axis], -1)
    scales = _scales(rows, bits)
    numbers = _numbers(rows, scales, bits)

    def back(x: Floats) -> Floats:
        """In the order of the weight, flat."""
        found = x.reshape(wide.shape) if axis is None else np.moveaxis(x.reshape(moved.shape), 0, axis)
        return np.ascontiguousarray(found).reshape(-1)

    with np.errstate(over="ignore", invalid="ignore"):
        values = back(numbers * scales[:, None] + np.float32(0))
        dtype = str(given.dtype).removeprefix("torch.")
        bits_of_values = rounded_bits(dtype, values)
    restored = as_array(dtype, (values.size,), bits_of_values)
    if not np.isfinite(restored).all():
        raise ValueError(
            f"{name} has weights up to {np.abs(flat).max():g}, at the very end of {dtype}; scale them down"
        )
    power = float(np.square(flat, dtype=np.float64).sum())
    error = float(np.square(restored - flat, dtype=np.float64).sum())
    tensor = torch.from_numpy(bits_of_values.view(np.uint8).copy()).view(given.dtype).reshape(given.shape)
    whole_numbers = back(numbers).astype(np.int16)
    return Quantised(bits, whole_numbers, scales, axis, tensor, error / power if power else 0.0)

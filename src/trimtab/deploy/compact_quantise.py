"""Weights as whole numbers times a scale: what a compact file holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from trimtab.checks import below_one, one_of, whole
from trimtab.deploy.compact_code import order_0_bits
from trimtab.deploy.one_file_reader import as_array, rounded_bits
from trimtab.tensors.selection import kth_threshold, removed_count, smallest_masks

Floats = npt.NDArray[np.float32]
Scales = Literal["auto", "channel", "tensor"]
COARSE = 4  # [ours] from so few bits on a scale has 4 significant bits, and is the one of least squared error
FRACTION = 0xFFFFF  # of a float32, beyond 4 significant bits
SCALE_BITS = {True: 7, False: 12}  # [ours] of a scale in the file, packed: a coarse one, one of bfloat16
TINY, MOST_GAINED = 1e-30, 16.0  # errors below count as this one; factors beyond 2^16 as that
KEPT_BITS = 11  # [ours] significant bits of biases, norms and BatchNorm's statistics, as many as float16 has


@dataclass(frozen=True)
class Quantised:
    """`numbers * scale`, rounded to the dtype of the weight.

    Attributes:
        numbers: flat, row-major, within `+-(2^(bits - 1) - 1)`; +-1 (and 0 for zeros) at one bit.
        scales: float32 with at most the 8 significant bits of bfloat16, so that the product is exact; one, or one for each
            channel.
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
    """One for each row: the mean magnitude of its non-zeros at one bit; the coarse one of least squared error at a few.

    Else the least that reaches the largest weight.
    """
    sizes = np.abs(rows)
    if bits == 1:
        return _rounded_up((sizes.sum(1, dtype=np.float64) / np.maximum((sizes > 0).sum(1), 1)).astype(np.float32))
    reaching = sizes.max(1) / np.float32(2 ** (bits - 1) - 1)
    if bits > COARSE:
        return _rounded_up(reaching)
    top = (reaching.view(np.uint32) + np.uint32(FRACTION)) & np.uint32(0xFFFFFFFF - FRACTION)
    steps = np.uint32(FRACTION + 1) * np.arange(9, dtype=np.uint32)  # down to half
    tried = np.where(top > steps[-1], top - steps[:, None], top).astype(np.uint32).view(np.float32)
    errors = [np.square(_numbers(rows, scales, bits) * scales[:, None] - rows).sum(1) for scales in tried]
    found: Floats = tried[np.argmin(errors, axis=0), np.arange(len(rows))]
    return found


def rounded(tensor: Tensor, bits: int) -> Tensor:
    """A floating-point tensor with so many significant bits at most, ties to even; NaN, infinities and zeros as they are.

    Example:
        >>> rounded(torch.tensor([1.0, 1 / 3, 1e-3]), 4).tolist()
        [1.0, 0.34375, 0.0009765625]
    """
    mantissa, exponent = torch.frexp(tensor.double())
    wide = torch.ldexp(torch.round(torch.ldexp(mantissa, torch.tensor(bits))), exponent - bits)
    found = wide.to(tensor.dtype)
    return torch.where(torch.isfinite(tensor) & torch.isfinite(found), found, tensor)


@torch.no_grad()
def quantise(
    name: str,
    weight: Tensor,
    bits: int,
    sparsity: float = 0.0,
    axis: int | None = None,
    scales: Scales = "channel",
) -> Quantised:
    """Prune `weight` by magnitude, then round it to `bits` bits.

    `q = round(w / s)` with `s` the largest magnitude over `2^(bits - 1) - 1`, rounded up to bfloat16; at 4 bits and fewer the
    one of least squared error from there down to half, of 4 significant bits. At one bit `q = sign(w)` and `s` is the mean
    magnitude of the non-zeros.

    With `scales="auto"` each channel has its own scale where that is worth the bytes: a lower error could be had by more bits
    instead, one for each weight that is not zero for a quarter of the error (6 dB a bit), and each channel counts by its own
    error, since what follows (a norm, the next weight) sees it at its own size. So the channels' scales are taken if the sum of
    `n / 2 log2(E_tensor / E_channel)` over the channels is more bits than theirs and those of the wider spread numbers [ours].

    Args:
        name: of the weight, for messages.
        weight: float64, float32, float16 or bfloat16, not empty.
        bits: 1 to 16.
        sparsity: fraction of zeros at least, in [0, 1). Zeros that are there count.
        axis: dimension with a scale for each index; None for one scale.
        scales: "channel"; "tensor", one scale in spite of `axis`; "auto", the better of both.

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
    one_of("scales", scales, get_args(Scales))
    ways = [None] if axis is None or scales == "tensor" else [axis] if scales == "channel" else [None, axis]
    found = [_rounded(name, given, flat, pruned, bits, way) for way in ways]
    return found[-1] if len(found) == 1 or _worth(found[0], found[1], pruned) else found[0]


def _worth(one: Quantised, each: Quantised, pruned: Floats) -> bool:
    """Whether a scale for each channel lowers the channels' errors by more than its bytes would if spent on bits."""
    assert each.axis is not None

    def in_channels(flat: Floats) -> Floats:
        return np.moveaxis(flat.reshape(pruned.shape), each.axis or 0, 0).reshape(each.scales.size, -1)

    lost = [
        np.square(in_channels(found.values.float().numpy().reshape(-1)) - in_channels(pruned)).sum(1)
        for found in (one, each)
    ]
    ratio = np.log2(np.maximum(lost[0], TINY)) - np.log2(np.maximum(lost[1], TINY))
    gain = float((np.count_nonzero(in_channels(pruned), 1) / 2 * np.clip(ratio, -MOST_GAINED, MOST_GAINED)).sum())
    scales = (each.scales.size - 1) * SCALE_BITS[1 < each.bits <= COARSE]
    return gain > scales + order_0_bits(each.numbers) - order_0_bits(one.numbers)


def _rounded(name: str, given: Tensor, flat: Floats, pruned: Floats, bits: int, axis: int | None) -> Quantised:
    """The pruned weight in so many bits, with one scale or one for each index of `axis`."""
    moved = pruned[None] if axis is None else np.moveaxis(pruned, axis, 0)
    rows = np.ascontiguousarray(moved).reshape(1 if axis is None else pruned.shape[axis], -1)
    scales = _scales(rows, bits)
    numbers = _numbers(rows, scales, bits)

    def back(x: Floats) -> Floats:
        """In the order of the weight, flat."""
        found = x.reshape(pruned.shape) if axis is None else np.moveaxis(x.reshape(moved.shape), 0, axis)
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

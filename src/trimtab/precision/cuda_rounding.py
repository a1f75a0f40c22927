"""Rounding on an NVIDIA GPU in one pass: the arithmetic of `Rounder`, entry by entry, in one kernel; and largest magnitudes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from trimtab.tensors.cuda_kernels import Kernel, kernel

if TYPE_CHECKING:
    from trimtab.precision.format import Format

ROUNDINGS = {"nearest": 0, "toward_zero": 1, "stochastic": 2}
OVERFLOWS = {"saturate": 0, "inf": 1, "nan": 2}
AT_ONCE = 8
"""Entries of a thread."""

SOURCE = r"""
// every operation is rounded once, as torch's are: no fused multiply-add
extern "C" __global__ void round_entries(
    const float* source, float* target, const float* encode, const float* decode, const float* uniform,
    int number, int group, int divide, int scaled, int rounding, int overflow, int subnormals, int signed_zero,
    double lowest_, double highest_, double digits_, double largest_) {
  const float lowest = (float)lowest_, highest = (float)highest_, digits = (float)digits_, largest = (float)largest_;
  const float limit = 3.4028234663852886e38f;
  const int stride = gridDim.x * blockDim.x;
  for (long long at = (long long)blockIdx.x * blockDim.x + threadIdx.x; at < number; at += stride) {
    float x = source[at], scale = 1.0f;
    if (scaled) {
      const int row = group ? (int)((unsigned)at / (unsigned)group) : 0;
      scale = decode[row];
      x = divide ? __fdiv_rn(x, scale) : __fmul_rn(x, encode[row]);
    }
    const int bits = __float_as_int(x), power = bits & 0x7F800000;
    float step = fminf(fmaxf(__int_as_float(power), lowest), highest);
    step = __fmul_rn(step, digits);
    if (!subnormals && fabsf(x) < lowest) step = lowest;
    float value = __fdiv_rn(x, step);
    if (rounding == 0) {
      value = rintf(value);
    } else if (rounding == 1) {
      value = truncf(value);
    } else {
      const float size = fabsf(value), whole = floorf(size);
      value = __fadd_rn(size - whole > uniform[at] ? 1.0f : 0.0f, whole);
      if (size != size) value = size;
    }
    value = __fmul_rn(value, step);
    if (rounding == 2) value = copysignf(value, x);
    const bool number_ = value == value;
    if (overflow == 0) {
      if (number_) value = fminf(fmaxf(value, -largest), largest);
    } else if (overflow == 1 && rounding == 1) {
      if (isinf(x)) value = x;
      else if (number_) value = fminf(fmaxf(value, -largest), largest);
    } else if (number_ && !(fabsf(value) <= largest)) {
      value = overflow == 2 ? __int_as_float(0x7FC00000) : copysignf(__int_as_float(0x7F800000), value);
    }
    if (!signed_zero) value = __fadd_rn(value, 0.0f);
    if (scaled) {
      value = __fmul_rn(value, scale);
      if (overflow == 0 && value == value) value = fminf(fmaxf(value, -limit), limit);
    }
    target[at] = value;
  }
}

"""

LARGEST = r"""
// rows of a power of two of at most 32 entries: as integers the magnitudes order like the numbers, NaN above all
extern "C" __global__ void largest_of_rows(const unsigned* source, unsigned* largest, int number, int length) {
  const int stride = gridDim.x * blockDim.x;
  for (long long first = (long long)blockIdx.x * blockDim.x; first < number; first += stride) {
    const long long at = first + threadIdx.x;
    unsigned size = at < number ? source[at] & 0x7FFFFFFFu : 0u;
    for (int away = length >> 1; away; away >>= 1) size = max(size, __shfl_xor_sync(0xFFFFFFFFu, size, away));
    if (at < number && at % length == 0) largest[at / length] = size;
  }
}
"""


class CudaRounding:
    """`Rounder`'s arithmetic for float32 tensors on an NVIDIA GPU, bit for bit.

    Args:
        format: with mantissa bits, or rounded to nearest in no case.
        rounding: "nearest", "toward_zero" or "stochastic".
        overflow: "saturate", "inf" or "nan".
        lowest, highest: as `Rounder` has them.
    """

    def __init__(
        self, run: Kernel, format: Format, rounding: str, overflow: str, lowest: float, highest: float
    ) -> None:
        self._run = run
        self._modes = (ROUNDINGS[rounding], OVERFLOWS[overflow], int(format.subnormals), int(format.signed_zero))
        self._numbers = (lowest, highest, math.ldexp(1.0, -format.mantissa), format.max)

    @classmethod
    def of(
        cls, format: Format, rounding: str, overflow: str, lowest: float, highest: float, device: torch.device
    ) -> CudaRounding | None:
        """None where torch's operations must do it."""
        known = rounding in ROUNDINGS and overflow in OVERFLOWS and not (rounding == "nearest" and not format.mantissa)
        run = kernel(SOURCE, "round_entries", device) if known else None
        return None if run is None else cls(run, format, rounding, overflow, lowest, highest)

    def takes(self, source: Tensor, target: Tensor, encode: Tensor | None, decode: Tensor | None) -> bool:
        """Whether the layout of the tensors and of their scales is one the kernel reads."""
        if not source.dtype == target.dtype == torch.float32 or source.numel() >= 2**31:
            return False
        if not (source.is_contiguous() and target.is_contiguous()):
            return False
        for scale in (decode, encode):
            if scale is None:
                continue
            if source.ndim != 2 or scale.shape not in ((source.shape[0], 1), (1, 1)):
                return False
            if scale.dtype != torch.float32 or not scale.is_contiguous():
                return False
        return encode is None or (decode is not None and encode.shape == decode.shape)

    def __call__(
        self, source: Tensor, target: Tensor, encode: Tensor | None, decode: Tensor | None, uniform: Tensor | None
    ) -> None:
        """Round `source` into `target`, which may be the same; `uniform` has the shape of both."""
        number, nothing = source.numel(), target
        group = source.shape[1] if decode is not None and decode.numel() > 1 else 0
        self._run(
            -(-number // AT_ONCE),
            [
                source, target, nothing if encode is None else encode, nothing if decode is None else decode,
                nothing if uniform is None else uniform, number, group, int(encode is None), int(decode is not None),
                *self._modes, *self._numbers,
            ],
        )  # fmt: skip


def largest_of_rows(rows: Tensor) -> Tensor | None:
    """Largest magnitude of each row, NaN where there is one, shape (rows, 1); None where torch's operations must find it."""
    length = rows.shape[1]
    small = length <= 32 and length & (length - 1) == 0 and rows.numel() < 2**31
    if not (small and rows.is_cuda and rows.dtype == torch.float32 and rows.is_contiguous()):
        return None
    run = kernel(LARGEST, "largest_of_rows", rows.device)
    if run is None:
        return None
    found = rows.new_empty(rows.shape[0], 1)
    run(-(-rows.numel() // AT_ONCE), [rows, found, rows.numel(), length])
    return found

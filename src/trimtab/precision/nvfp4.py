"""Scales in two levels: a float8 scale for each block, and one float32 scale for the tensor that brings those into range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import one_of
from trimtab.precision.blocks import Block
from trimtab.precision.format import Format, named
from trimtab.precision.rounding import Rounder
from trimtab.precision.scaling import Scales, absmax, divided

LARGEST_SCALE = 448.0
HEADROOM_SCALE = 256.0
CHUNK = 1 << 17
_MAX = torch.finfo(torch.float32).max

ScaleRounding = Literal["nearest", "up"]


@dataclass(frozen=True, repr=False)
class NVFP4(Block):
    """Blocks of 16 entries with an e4m3 scale each, and a float32 scale for the tensor (arXiv 2509.25149).

    With A the largest magnitude of the tensor, a that of a block and `max` the format's largest number (6 for e2m1), all in
    float32 and in this order, as TransformerEngine computes them since 2026 (before, it divided a by 6 first):

        S = min(448 max / A, largest float32), 1 where A = 0        s = e4m3(a (S (1 / max)))
        encode = min(1 / (s (1 / S)), largest float32)              decode = s (1 / S)

    and the result is `decode * round(clamp(encode * x))`. A block whose s is 0 becomes 0. A NaN or an infinity in the tensor
    makes it NaN as a whole, since every block shares A. With `rows=16` the blocks are 16 x 16 tiles, so that a weight has the
    same numbers in all products; where `size` or `rows` does not divide the length, blocks at the end are filled up with
    zeros, which are cut off again. float64 tensors must lie within float32's range.

    Under `scale_rounding="nearest"`, the published form, s may be rounded down; the block's largest entries then saturate, by
    up to 1/17, and stochastic rounding has the mean clamp(x, -max decode, max decode): it is biased. "up" [ours] takes the
    next larger s instead, so that none saturates, and is unbiased; a block above 448 / 449 of the largest is not affected.

    `four_over_six=True` (arXiv 2512.02010): each block is tried with its largest entry at 6 and at 4, and the scale whose
    nearest rounding has the smaller squared error is taken (at 6 where they are equal); 256 stands for 448, so that the larger
    scales fit. Under stochastic rounding the choice is still made by rounding to nearest [ours].

    Args:
        size, dim, rows: of a block; default 16 along the last dimension, one row.
        scale_rounding: "nearest" (default) or "up".
        four_over_six: default False; for e2m1.

    Example:
        >>> from trimtab.precision import quantize
        >>> quantize(torch.tensor([0.01, -0.0035]), "e2m1", scaling=NVFP4())
        tensor([ 0.0100, -0.0033])
    """

    size: int = 16
    scale_rounding: ScaleRounding = field(default="nearest", kw_only=True)
    four_over_six: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("scale_rounding", self.scale_rounding, get_args(ScaleRounding))
        if self.rule != "absmax":
            raise ValueError(f"NVFP4's scales are not powers of two: rule must be absmax, got {self.rule!r}")

    @property
    def overflows(self) -> bool:
        """Whether a scaled entry can lie above the format's largest number: where s is rounded down."""
        return self.scale_rounding == "nearest"

    @property
    def biases(self) -> str | None:
        """What is not biased, where this is."""
        return "NVFP4(scale_rounding='up') and MSEden do not saturate" if self.overflows else None

    def check(self, format: Format, rounding: str = "nearest") -> None:
        """ValueError for formats that four_over_six is not about."""
        if self.four_over_six and format != named("e2m1"):
            raise ValueError(
                f"four_over_six is about e2m1, whose largest numbers are 4 and 6, got format {format.name!r}"
            )

    def lowest_exponent(self, dtype: torch.dtype, format: Format) -> int:
        """Products of s and 1 / S may be subnormal in float32."""
        return -149

    def of_tensor(self, x: Tensor, format: Format) -> Tensor:
        """S of the formula."""
        top = HEADROOM_SCALE if self.four_over_six else LARGEST_SCALE
        return tensor_scale(absmax(x.reshape(1, -1)), top * format.max)

    def of_rows(
        self,
        rows: Tensor,
        format: Format,
        dtype: torch.dtype,
        whole: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Scales:
        """s / S of each block, and its inverse; `whole` is S, by default that of the rows."""
        whole = self.of_tensor(rows, format) if whole is None else whole
        largest = absmax(rows).float()
        scales = self._scales(largest, whole, format.max, dtype)
        if self.four_over_six:
            smaller = float(format.values()[-2])
            scales = _better(rows, format, dtype, scales, self._scales(largest, whole, smaller, dtype))
        return scales

    def _scales(self, largest: Tensor, whole: Tensor, top: float, dtype: torch.dtype) -> Scales:
        wanted = (largest * (whole * divided(torch.ones_like(whole), top))).clamp_(max=LARGEST_SCALE)
        stored = round_scale(wanted, self.scale_rounding)
        return decoded(stored, whole, dtype)


def tensor_scale(largest: Tensor, top: float) -> Tensor:
    """min(top / A, largest float32), and 1 where A = 0, NaN where A is not finite; float32."""
    largest = largest.float()
    scale = (torch.full_like(largest, top) / largest).clamp_(max=_MAX)  # a number / tensor would round twice
    return scale.masked_fill_(largest == 0, 1.0).add_(largest - largest)


def decoded(stored: Tensor, whole: Tensor, dtype: torch.dtype) -> Scales:
    """Factors of both ways from block scales and the tensor's scale, computed in float32."""
    decode = stored * whole.reciprocal()
    return Scales(decode.to(dtype), decode.reciprocal().clamp_(max=_MAX).to(dtype))


def round_scale(wanted: Tensor, rounding: ScaleRounding) -> Tensor:
    """Numbers from 0 to 448 in e4m3, to nearest or to the next that is not smaller; float32."""
    codes = wanted.to(torch.float8_e4m3fn)
    if rounding == "up":
        below = codes.float() < wanted
        codes = (codes.view(torch.uint8) + below.to(torch.uint8)).view(torch.float8_e4m3fn)
    return codes.float()


def _better(rows: Tensor, format: Format, dtype: torch.dtype, first: Scales, second: Scales) -> Scales:
    """Of two sets of scales, for each row those with the smaller squared error of rounding to nearest."""
    together = max(CHUNK // rows.shape[1], 1)
    rounder = Rounder(format, "nearest", "saturate", None, dtype, rows.device, together * rows.shape[1])
    rounded = torch.empty(together, rows.shape[1], dtype=dtype, device=rows.device)
    better = []
    for start in range(0, len(rows), together):
        wide = rows[start : start + together].to(dtype)
        errors = []
        for scales in (first, second):
            rounder(wide, rounded[: len(wide)], scales.part(start, start + together))
            errors.append((rounded[: len(wide)].double() - wide).square_().sum(-1, keepdim=True))
        better.append(errors[1] < errors[0])
    take = torch.cat(better)
    assert first.encode is not None
    assert second.encode is not None
    return Scales(torch.where(take, second.decode, first.decode), torch.where(take, second.encode, first.encode))

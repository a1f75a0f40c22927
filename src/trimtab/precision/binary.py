"""Weights of one bit, and the estimator of their gradient (ReSTE; Wu et al. 2023, arXiv 2308.06689)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def sign(x: Tensor) -> Tensor:
    """1 from 0 on, -1 below [ours: torch's sign of 0 is 0, which is no number of one bit]; NaN stays NaN."""
    return torch.where(x.isnan(), x, torch.where(x >= 0, 1.0, -1.0).to(x.dtype))


def power_at(progress: float, o_end: float) -> float:
    """`o = 1 + (1 - cos(pi progress / 2)) (o_end - 1)`: from 1 at the start of a run to `o_end` at its end.

    Example:
        >>> round(power_at(0.5, 3.0), 6)
        1.585786
    """
    return 1 + (1 - math.cos(math.pi * progress / 2)) * (o_end - 1)


def estimated_slope(x: Tensor, o: float = 3.0, clip: float = 1.5, interval: float = 0.1) -> Tensor:
    """What stands for the derivative of sign: that of `sign(x) |x|^(1/o)`, a secant near 0, 0 far from it.

    `(1/o) |x|^((1 - o)/o)` where `interval < |x| <= clip`, `interval^(1/o) / interval` where `|x| <= interval`, 0 beyond.
    With o = 1 it is the straight-through estimator: 1 where `|x| <= clip`.

    Source: arXiv 2308.06689.

    Example:
        >>> estimated_slope(torch.tensor([0.0, 0.7, 2.0]), o=2.0)
        tensor([3.1623, 0.5976, 0.0000])
    """
    size = x.abs()
    middle = size.clamp(min=interval).pow((1 - o) / o) / o
    inner = torch.where(size <= interval, interval ** (1 / o) / interval, middle)
    return torch.where(size.isnan(), size, torch.where(size <= clip, inner, 0.0).to(x.dtype))


class BinarySign(torch.autograd.Function):
    """Sign on the way forward, `estimated_slope` on the way back: `BinarySign.apply(x, o, clip, interval)`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, o: float, clip: float, interval: float) -> Tensor:
        """The signs of x."""
        ctx.save_for_backward(x)
        ctx.shape = (o, clip, interval)
        return sign(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient times the slope at x."""
        (x,) = ctx.saved_tensors
        return gradients[0] * estimated_slope(x, *ctx.shape), None, None, None

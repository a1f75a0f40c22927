"""The numbers that the method sheets are computed with."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wave(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """`scale (sin(1.3 k + 0.7 seed) + 0.5 cos(0.37 k^2 + seed))`, k = 0, 1, ..., float64."""
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    return scale * ((1.3 * k + 0.7 * seed).sin() + 0.5 * (0.37 * k * k + seed).cos()).reshape(shape)

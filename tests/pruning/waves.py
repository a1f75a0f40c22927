"""A fixed series of numbers, for which results of an independent computation are written down in tests."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def wave(shape: tuple[int, ...], seed: int = 0, scale: float = 1.0) -> Tensor:
    """`scale (sin(1.3 k + 0.7 seed) + 0.5 cos(0.37 k^2 + seed))` for k = 0, 1, .., in float64."""
    flat = [
        scale * (math.sin(1.3 * k + 0.7 * seed) + 0.5 * math.cos(0.37 * k * k + seed)) for k in range(math.prod(shape))
    ]
    return torch.tensor(flat, dtype=torch.float64).view(shape)

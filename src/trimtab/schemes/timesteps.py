"""Timesteps of a flow or diffusion model drawn more often near the two ends."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trimtab.checks import number, positive, whole

STEEP = 30.0
"""Above it `e^a` is taken out of the logarithm, since float32 does not hold it."""


class UShapedTimestep:
    """U-shaped timesteps: density `a (e^(a t) + e^(a (1 - t))) / (2 (e^a - 1))` on [0, 1], laid on [low, high].

    Drawn by the inverse `t = ln(1 + u (e^a - 1)) / a` of its rising half, mirrored for every second one at random. The straight
    paths of a second rectified flow are hard at their ends and easy in the middle.

    Args:
        a: above 0; the larger, the more at the ends. Default 4 (authors' code).
        low, high: ends, 0 <= low < high <= 1. Default 1e-5 and 1 - 1e-5 (authors' code); others restrict training to a part.

    Raises:
        ValueError: a number out of range.

    Reference: Lee et al., arXiv 2405.20320.

    Example:
        >>> sampler = UShapedTimestep(a=4.0)
        >>> sampler.sample(2, generator=torch.Generator().manual_seed(0)).shape
        torch.Size([2])
    """

    def __init__(self, a: float = 4.0, low: float = 1e-5, high: float = 1 - 1e-5) -> None:
        self.a = positive("a", a)
        self.low = number("low", low, least=0, below=1)
        self.high = number("high", high, above=self.low, most=1)

    def density(self, t: Tensor) -> Tensor:
        """Of timesteps; 0 outside [low, high]."""
        span = self.high - self.low
        unit = (t - self.low) / span
        found = (self.a * (unit - 1)).exp() + (-self.a * unit).exp()  # as in the formula, both by e^a, which overflows
        inside = (unit >= 0) & (unit <= 1)
        return torch.where(inside, found * self.a / (-2 * math.expm1(-self.a) * span), 0)

    def rising(self, u: Tensor) -> Tensor:
        """The rising half's inverse distribution on [0, 1]."""
        if self.a <= STEEP:
            return (u * math.expm1(self.a)).log1p() / self.a
        return (1 + (u + (1 - u) * math.exp(-self.a)).log() / self.a).clamp(min=0)

    def sample(
        self, number: int, *, generator: torch.Generator | None = None, device: torch.device | str | None = None
    ) -> Tensor:
        """So many timesteps, float32.

        Args:
            number: 1 or more.
            generator: of the random numbers. Default torch's own.
            device: default that of the generator.
        """
        whole("number", number, 1)
        place = device if device is not None or generator is None else generator.device
        u, side = torch.rand(2, number, generator=generator, device=place).unbind()
        t = self.rising(u)
        return self.low + (self.high - self.low) * torch.where(side < 0.5, t, 1 - t)

    def __repr__(self) -> str:
        return f"UShapedTimestep(a={self.a:g}, low={self.low:g}, high={self.high:g})"

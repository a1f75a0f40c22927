"""What the variance amplifier and weight decay do together: the balance of a layer, and the clock by which its shape moves.

Under gradient descent without a task, with V, m and n the variance, mean and number of a layer's magnitudes, d the decay,
`c = 2 strength / (n V^2)` and t the sum of lr / (1 - momentum): `dw/dt = (c - d) w - c m sign(w)`. Until weights reach zero,

    dm/dt = -d m,    dV/dt = 2 (c - d) V,    V^2 = V*^2 + (V0^2 - V*^2) e^(-4 tau),    V* = sqrt(2 strength / (n d)),  tau = d t
    T = integral of c dt = log(1 + (V* / V0)^2 (e^(4 tau) - 1)) / 4,    sqrt(V) / m = (its start) e^T

All of it is ours.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

ENOUGH = 0.5
"""T below which the variance amplifier can hardly change a layer's shape [ours]: e^0.5 times the coefficient of variation."""


def pull(variance: float, number: float, strength: float) -> float:
    """c, the rate at which the variance amplifier moves a layer's shape; `variance` with eps added.

    Example:
        >>> pull(0.5, number=8, strength=1.0)
        1.0
    """
    return 2 * strength / (number * variance * variance) if variance else math.inf


def variance_at_rest(number: float, strength: float, decay: float) -> float:
    """V*, at which the growth by the variance amplifier equals the decay.

    Example:
        >>> variance_at_rest(200, strength=1.0, decay=1.0)
        0.1
    """
    return math.sqrt(2 * strength / (number * decay))


def time_to_come(pull_now: float, decay: float, remaining: float) -> float:
    """T over a `remaining` sum of lr / (1 - momentum), for a layer whose pull is `pull_now`; decay may be 0.

    Example:
        >>> round(time_to_come(pull_now=1e-3, decay=1e-3, remaining=500), 9)  # at rest T is tau
        0.5
        >>> round(time_to_come(pull_now=1.0, decay=0.0, remaining=1.0), 9) == round(math.log(5) / 4, 9)
        True
    """
    if not decay:
        return math.log1p(4 * pull_now * remaining) / 4
    four_tau, share = 4 * decay * remaining, pull_now / decay
    if four_tau < 50:
        return math.log1p(share * math.expm1(four_tau)) / 4
    return (four_tau + math.log(share + (1 - share) * math.exp(-four_tau))) / 4 if share else 0.0


def variance_after(variance: float, at_rest: float, tau: float) -> float:
    """V after a time tau, in closed form.

    Example:
        >>> variance_after(2.0, at_rest=2.0, tau=1.0), variance_after(5.0, at_rest=2.0, tau=0.0)
        (2.0, 5.0)
    """
    return math.sqrt(at_rest**2 + (variance**2 - at_rest**2) * math.exp(-4 * tau))


@dataclass(frozen=True)
class LayerBalance:
    """One layer between the variance amplifier and weight decay.

    Attributes:
        name, number: of the layer, and of its weights.
        start: V0, the variance of its magnitudes at the first step (now, before one).
        variance: V, now.
        at_rest: V*, where it would come to rest.
        variation: sqrt(V) / m, the coefficient of variation now.
        pull: c, now.
        time: T so far.
        predicted: T at the end of the schedule.
        tau: d times the sum of lr / (1 - momentum), so far and to come.
    """

    name: str
    number: int
    start: float
    variance: float
    at_rest: float
    variation: float
    pull: float
    time: float
    predicted: float
    tau: float


@dataclass(frozen=True)
class Equilibrium:
    """Every layer's balance, and the network's: means over weights, of V0 / V* and V / V* the geometric ones.

    Example:
        >>> layer = LayerBalance("fc", 10, 1.0, 1.5, 2.0, 0.8, 1e-4, 0.01, 0.2, 0.18)
        >>> print(Equilibrium((layer,)))
        predicted T 0.20 (tau 0.18, V0/V* 0.50): too short or decay too small for this lever
    """

    layers: tuple[LayerBalance, ...]

    def _mean(self, values: Sequence[float]) -> float:
        numbers = [layer.number for layer in self.layers]
        return sum(n * value for n, value in zip(numbers, values, strict=True)) / sum(numbers)

    def _ratio(self, values: Sequence[float]) -> float:
        shares = [value / layer.at_rest for value, layer in zip(values, self.layers, strict=True)]
        return math.exp(self._mean([math.log(share) if share else -math.inf for share in shares]))

    @property
    def time(self) -> float:
        """T so far."""
        return self._mean([layer.time for layer in self.layers])

    @property
    def predicted(self) -> float:
        """T at the end of the schedule."""
        return self._mean([layer.predicted for layer in self.layers])

    @property
    def tau(self) -> float:
        """Of the whole schedule."""
        return self._mean([layer.tau for layer in self.layers])

    @property
    def variation(self) -> float:
        """Coefficient of variation of the magnitudes, now."""
        return self._mean([layer.variation for layer in self.layers])

    @property
    def start_ratio(self) -> float:
        """V0 / V*."""
        return self._ratio([layer.start for layer in self.layers])

    @property
    def ratio(self) -> float:
        """V / V*, now."""
        return self._ratio([layer.variance for layer in self.layers])

    @property
    def too_short(self) -> bool:
        """Whether the run is too short, or the decay too small, for the variance amplifier to show."""
        return self.predicted < ENOUGH

    def __str__(self) -> str:
        verdict = ": too short or decay too small for this lever" if self.too_short else ""
        return f"predicted T {self.predicted:.2f} (tau {self.tau:.2f}, V0/V* {self.start_ratio:.2f}){verdict}"

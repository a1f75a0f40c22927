"""Learning rates for another batch size, and from the ends of the Hessian's spectrum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from trimtab.checks import number, one_of, positive

RULES = ("linear", "sqrt")
KINDS = ("gradient_descent", "heavy_ball")


def scale_learning_rate(
    lr: float, from_batch: float, to_batch: float, rule: Literal["linear", "sqrt"] = "linear"
) -> float:
    """The rate for another batch size: `lr * (to / from)` for SGD, `lr * sqrt(to / from)` for Adam.

    Holds up to the batch from which noise no longer matters (`trimtab.observe.GradientNoiseScale`).

    Args:
        lr: the rate that suits `from_batch`; above 0.
        from_batch, to_batch: examples of a step; above 0.
        rule: "linear" (SGD, default) or "sqrt" (Adam and its kin).

    Raises:
        ValueError: a number out of range, or an unknown rule.

    Reference: Granziol, Zohren, Roberts, arXiv 2006.09092.

    Example:
        >>> scale_learning_rate(0.1, 128, 512), scale_learning_rate(0.1, 128, 512, "sqrt")
        (0.4, 0.2)
    """
    ratio = positive("to_batch", to_batch) / positive("from_batch", from_batch)
    one_of("rule", rule, RULES)
    return positive("lr", lr) * (ratio if rule == "linear" else math.sqrt(ratio))


@dataclass(frozen=True)
class SpectralRate:
    """What the ends of a spectrum allow.

    Attributes:
        lr: the learning rate, `safety` included.
        momentum: 0 for gradient descent.
        largest, smallest: the ends it is of.
        note: what was put in the place of an end, in words; empty for nothing.
    """

    lr: float
    momentum: float
    largest: float
    smallest: float
    note: str = ""


def learning_rate_from_spectrum(
    eigenvalues: Sequence[float],
    kind: Literal["gradient_descent", "heavy_ball"] = "gradient_descent",
    safety: float = 0.5,
) -> SpectralRate:
    """Learning rate and momentum from the Hessian's eigenvalues, such as the Ritz values of a few Lanczos steps.

    With L the largest and mu the smallest positive one: gradient descent is stable below 2 / L, so `lr = safety * 2 / L`; heavy
    ball converges fastest with `lr = (2 / (sqrt L + sqrt mu))^2` and `momentum = ((sqrt L - sqrt mu) / (sqrt L + sqrt mu))^2`
    (Polyak), its lr multiplied by `2 safety`.

    Args:
        eigenvalues: at least one, such as `Hessian.eigenvalues(...)` or Ritz values from both ends.
        kind: "gradient_descent" (default) or "heavy_ball".
        safety: share of the limit; in (0, 1]. Default 0.5 [ours]: the fastest rate on a quadratic of one curvature.

    Raises:
        ValueError: no eigenvalue is above 0, or an argument is out of range.

    Reference: Granziol, Zohren, Roberts, arXiv 2006.09092; Polyak 1964.

    Example:
        >>> found = learning_rate_from_spectrum([0.1, 10.0], "heavy_ball")
        >>> round(found.lr, 4), round(found.momentum, 4)
        (0.3306, 0.6694)
    """
    one_of("kind", kind, KINDS)
    safety = number("safety", safety, above=0, most=1)
    values = [float(value) for value in eigenvalues]
    above = [value for value in values if value > 0 and math.isfinite(value)]
    if not above:
        raise ValueError(f"eigenvalues must hold one above 0, got {values[:5]}{'...' if len(values) > 5 else ''}")
    largest, smallest = max(above), min(above)
    note = ""
    if len(above) < len(values):
        note = (
            f"{len(values) - len(above)} of {len(values)} eigenvalues are not above 0; mu is the smallest positive one"
        )
    if kind == "gradient_descent":
        return SpectralRate(2 * safety / largest, 0.0, largest, smallest, note)
    root, other = math.sqrt(largest), math.sqrt(smallest)
    return SpectralRate(
        2 * safety * (2 / (root + other)) ** 2, ((root - other) / (root + other)) ** 2, largest, smallest, note
    )

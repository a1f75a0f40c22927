"""Every check of a value, once: bad input is refused at once, with the value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real


def positive(name: str, value: float) -> float:
    """`value` as a float; ValueError unless it is finite and above 0.

    Example:
        >>> positive("max_norm", 1)
        1.0
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name} must be finite and above 0, got {value}")
    return float(value)


def one_of(name: str, value: str, allowed: Sequence[str]) -> str:
    """`value`; ValueError unless it is among `allowed`.

    Example:
        >>> one_of("granularity", "tensor", ("tensor", "channel"))
        'tensor'
    """
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    return value


def non_negative(name: str, value: object) -> float:
    """`value` as a float; ValueError unless it is finite and at least 0.

    Example:
        >>> non_negative("strength", 1)
        1.0
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number < 0:
        raise ValueError(f"{name} must be finite and 0 or more, got {value}")
    return number


def below_one(name: str, value: object) -> float:
    """`value` as a float; ValueError unless it lies in [0, 1).

    Example:
        >>> below_one("momentum", 0.9)
        0.9
    """
    number = non_negative(name, value)
    if number >= 1:
        raise ValueError(f"{name} must lie in [0, 1), got {value}")
    return number

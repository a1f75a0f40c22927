"""Norms of gradients, and the check of a radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

from torch import Tensor

from trimtab.collectives import local_part
from trimtab.tensors.moments import joint_norm

TINY = 1e-12  # added to gradient norms before dividing, as SAM's authors do


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that exist (the parts on this rank)."""
    return [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]


def global_norm(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> float:
    """L2 norm over all tensors together, shards on other ranks too; 0.0 for none."""
    return float(joint_norm(tensors, parameters))


def non_negative(name: str, value: object) -> float:
    """`value` as a float when it is a finite number of 0 or more, else ValueError."""
    number = float(value) if not isinstance(value, bool) and isinstance(value, Real) else math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}")
    return number

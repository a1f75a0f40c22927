"""Norms of gradients, and the check of a radius."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from trimtab.collectives import local_part, sum_over_shards

TINY = 1e-12  # added to gradient norms before dividing, as SAM's authors do


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that exist (the parts on this rank)."""
    return [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]


def global_norm(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> float:
    """L2 norm over all tensors together, summed in float64 over tensors and shards; 0.0 for none."""
    if not tensors:
        return 0.0
    norms: list[Tensor] = [torch.empty(0)] * len(tensors)
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for position, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(position)
    for (_, dtype), positions in kinds.items():
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        block = torch._foreach_norm([tensors[position] for position in positions], dtype=wide)
        for position, norm in zip(positions, block, strict=True):
            norms[position] = norm if len(kinds) == 1 else norm.to(tensors[0].device, torch.float64)
    rows = torch.stack(norms).to(torch.float64).square_().unsqueeze_(1)
    return math.sqrt(float(sum_over_shards(rows, parameters).sum()))


def non_negative(name: str, value: object) -> float:
    """`value` as a float when it is a finite number of 0 or more, else ValueError."""
    number = float(value) if not isinstance(value, bool) and isinstance(value, Real) else math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be a finite number, 0 or more, got {value!r}")
    return number

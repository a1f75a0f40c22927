"""Norms of gradients."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from trimtab.collectives import local_part
from trimtab.tensors.norms import joint_norm

TINY = 1e-12  # added to gradient norms before dividing, as SAM's authors do


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradients that exist (the parts on this rank)."""
    return [local_part(parameter.grad) for parameter in parameters if parameter.grad is not None]


def global_norm(tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> float:
    """L2 norm over all tensors together, shards on other ranks too; 0.0 for none."""
    return float(joint_norm(tensors, parameters))

"""Rounding before the reduction: each rank's gradient as DistributedDataParallel is about to send it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from trimtab.collectives import is_distributed

Round = Callable[[Tensor, Tensor], None]
"""(parameter, its gradient on this rank) -> None; rounds the gradient in place."""


class QuantisedReduction:
    """What the communication hook of a model calls: what rounds, or None for the plain mean over the ranks."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.round: Round | None = None
        self._group = group

    def reduce(self, bucket: Any) -> torch.futures.Future[Tensor]:
        """Round the gradients of a bucket in place, then average them over the ranks."""
        from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

        if self.round is not None:
            for parameter, gradient in zip(bucket.parameters(), bucket.gradients(), strict=True):
                self.round(parameter, gradient)
        return allreduce_hook(self._group, bucket)


# a hook cannot be taken off again, so that of a model is kept and used anew
_registered: weakref.WeakKeyDictionary[nn.Module, QuantisedReduction] = weakref.WeakKeyDictionary()


def quantised_reduction(model: nn.Module | None, round: Round) -> QuantisedReduction | None:
    """Let `round` act before the model's reduction; None in one process that does not reduce.

    Raises:
        ValueError: several ranks and no DistributedDataParallel model, or one whose gradients another lever rounds.
        RuntimeError: the model has a communication hook of another origin.
    """
    if not isinstance(model, nn.parallel.DistributedDataParallel):
        if is_distributed():
            raise ValueError(
                "before_reduce=True hooks the reduction of DistributedDataParallel; give attach(..., model=that model), got "
                f"{type(model).__name__}"
            )
        return None
    if model not in _registered:
        reduction = QuantisedReduction(model.process_group)
        model.register_comm_hook(reduction, lambda state, bucket: state.reduce(bucket))  # it refuses string annotations
        _registered[model] = reduction
    reduction = _registered[model]
    if reduction.round is not None:
        raise ValueError("another LowPrecision rounds this model's gradients before the reduction; remove it first")
    reduction.round = round
    return reduction

"""Moments of the gradients of many entries."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.parameters import Entry
from trimtab.tensors.moments import Moments, moments


def moments_of(chosen: Sequence[Entry]) -> Moments:
    """Moments of each entry's gradient, whole tensors also when sharded, on the first gradient's device.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1, 2))
        >>> weight.grad = torch.tensor([[1.0, 3.0]])
        >>> moments_of([Entry("weight", weight)]).mean
        tensor([2.], dtype=torch.float64)
    """
    gradients = [entry.parameter.grad for entry in chosen if entry.parameter.grad is not None]
    return moments(gradients, gradients)

"""Moments of the gradients of many entries, on any mix of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trimtab.moments import Moments, moments
from trimtab.parameters import Entry


def moments_of(chosen: Sequence[Entry]) -> Moments:
    """Moments of each entry's gradient, whole tensors also when sharded, on the first gradient's device.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1, 2))
        >>> weight.grad = torch.tensor([[1.0, 3.0]])
        >>> moments_of([Entry("weight", weight)]).mean
        tensor([2.], dtype=torch.float64)
    """
    gradients = [entry.parameter.grad for entry in chosen if entry.parameter.grad is not None]
    devices = list(dict.fromkeys(gradient.device for gradient in gradients))
    if len(devices) == 1:
        return moments(gradients, gradients)
    columns = torch.zeros(3, len(gradients), dtype=torch.float64, device=devices[0])
    for device in devices:
        positions = [position for position, gradient in enumerate(gradients) if gradient.device == device]
        members = [gradients[position] for position in positions]
        found = torch.stack(moments(members, members)).to(devices[0])
        columns[:, torch.tensor(positions, device=devices[0])] = found
    return Moments(*columns.unbind())

"""Moments of the gradients of many entries: small ones of one shape together, on any mix of devices."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.parameters import Entry
from trimtab.tensors.blocks import STACKED, blocks
from trimtab.tensors.moments import Moments, moments, unit_moments
from trimtab.tensors.units import Item


def moments_of(chosen: Sequence[Entry]) -> Moments:
    """Moments of each entry's gradient, whole tensors also when sharded, on the first gradient's device.

    Example:
        >>> weight = torch.nn.Parameter(torch.ones(1, 2))
        >>> weight.grad = torch.tensor([[1.0, 3.0]])
        >>> moments_of([Entry("weight", weight)]).mean
        tensor([2.], dtype=torch.float64)
    """
    gradients = [entry.parameter.grad for entry in chosen if entry.parameter.grad is not None]
    small: list[int] = []
    large: dict[torch.device, list[int]] = {}
    for position, gradient in enumerate(gradients):
        if gradient.numel() > STACKED or type(gradient) is not Tensor or not gradient.is_contiguous():
            large.setdefault(gradient.device, []).append(position)
        else:
            small.append(position)
    found: list[Tensor] = []
    order: list[int] = []
    device = gradients[0].device
    for positions in large.values():
        members = [gradients[position] for position in positions]
        found.append(torch.stack(moments(members, members)).to(device))
        order += positions
    for block in blocks([Item(gradients[position], None) for position in small]):
        (rows,) = block.rows
        found.append(unit_moments(rows)[:, :3].T.to(device))
        order += [small[position] for position in block.positions]
    # a tensor without elements is in no block: zeros
    joined = torch.zeros(3, len(gradients), dtype=torch.float64, device=device)
    joined[:, torch.tensor(order, device=device)] = torch.cat(found, 1)
    return Moments(*joined.unbind())

"""Channels: the rows of a gradient along its output dimension, wherever the parts of a sharded one lie.

A channel is one index of `Entry.output_axis`: an output row of a Linear or convolution, dimension 1 of a transposed
convolution; of stacked experts, one such index of one expert. Sharding along that dimension (FSDP2's
habit) leaves channels whole on one rank; any other sharding cuts them, and their sums are then added over ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import is_sharded, local_part, sum_over_shards
from trimtab.parameters import Entry


class Item(NamedTuple):
    """A local tensor and the dimension that indexes its units (None: the whole tensor is one)."""

    tensor: Tensor
    axis: int | None


def channel_axis(entry: Entry) -> int | None:
    """The dimension that indexes channels; None where the whole tensor is one unit: fewer than two dimensions, or a scale, a
    bias or a table of positions by its owner's word."""
    if entry.output_axis is not None:
        return entry.output_axis
    return 0 if entry.parameter.ndim > 1 and entry.owner is None else None


def items_of(entry: Entry, tensor: Tensor) -> list[Item]:
    """The local tensor of an entry with the dimension that indexes its channels; one view for each of stacked experts.

    Example:
        >>> experts = torch.nn.Parameter(torch.zeros(2, 3, 4))
        >>> items = items_of(Entry("experts", experts, output_axis=2, input_axis=1, stack_axis=0), experts)
        >>> [(item.tensor.shape, item.axis) for item in items]
        [(torch.Size([3, 4]), 1), (torch.Size([3, 4]), 1)]
    """
    axis, stack = channel_axis(entry), entry.stack_axis
    if stack is None or axis is None:
        return [Item(tensor, axis)]
    return [Item(matrix, axis - (stack < axis)) for matrix in tensor.unbind(stack)]


def rows_of(tensor: Tensor, axis: int | None, like: Tensor | None = None) -> Tensor:
    """A view with the units first: shape (units, elements) where the layout allows, else (units, ...).

    Args:
        tensor: read or worked on through the view.
        axis: the dimension that indexes units, None for one unit.
        like: a tensor of the same shape, in whose memory order the elements of a unit stand. Default `tensor` itself. What
            has another order itself comes as (units, ...), or as a copy of (units, elements).

    Example:
        >>> rows_of(torch.zeros(4, 3, 2, 2), 0).shape, rows_of(torch.zeros(4, 3, 2, 2), 1).shape
        (torch.Size([4, 12]), torch.Size([3, 4, 2, 2]))
        >>> rows_of(torch.zeros(5), None).shape
        torch.Size([1, 5])
    """
    like = tensor if like is None else like
    if axis is None:
        tensor, like, axis = tensor.unsqueeze(0), like.unsqueeze(0), 0
    if axis == 0 and like.is_contiguous():
        return tensor.reshape(tensor.shape[0], -1) if tensor.numel() else tensor.flatten(1)
    others = sorted((dim for dim in range(like.ndim) if dim != axis), key=like.stride, reverse=True)
    rows, like = tensor.permute(axis, *others), like.permute(axis, *others)
    return rows.reshape(rows.shape[0], -1) if like.is_contiguous() and rows.numel() else rows


def row_elements(entry: Entry, axis: int | None) -> int:
    """Elements in one unit of the whole tensor."""
    shape = entry.parameter.shape
    units = 1 if axis is None else shape[axis]
    if axis is not None and entry.stack_axis is not None:
        units *= shape[entry.stack_axis]
    return entry.parameter.numel() // max(1, units)


def is_cut(entry: Entry, parameter: Tensor) -> bool:
    """Whether the units of a sharded tensor of the entry are spread over ranks.

    Raises:
        ValueError: those of stacked experts are, whose sums are not added over ranks.
    """
    if type(parameter) in (Tensor, torch.nn.Parameter) or not is_sharded(parameter):
        return False
    whole = [axis for axis in (channel_axis(entry), entry.stack_axis) if axis is not None]
    placements = parameter.placements  # type: ignore[attr-defined]
    cut = any(not place.is_replicate() and not any(place.is_shard(axis) for axis in whole) for place in placements)
    if cut and entry.stack_axis is not None:
        raise ValueError(f"{entry.name} holds stacked experts sharded along their inputs; shard them along the experts")
    return cut


def over_ranks(sums: Sequence[Tensor], gradients: Sequence[Tensor], axes: Sequence[int | None]) -> list[Tensor]:
    """Add the sums of cut units over the ranks that hold their parts; one collective per process group.

    Args:
        sums: of each gradient, shape (local units, k), float64.
        gradients: the sharded gradients.
        axes: the dimension of each that indexes units.

    Returns:
        Tensors like `sums`.
    """
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    wide, spans, owners = [], [], []
    for local, gradient, axis in zip(sums, gradients, axes, strict=True):
        units, first = 1, 0
        if axis is not None:
            units = gradient.shape[axis]
            _, offset = compute_local_shape_and_global_offset(
                gradient.shape,
                gradient.device_mesh,  # type: ignore[attr-defined]
                gradient.placements,  # type: ignore[attr-defined]
            )
            first = offset[axis] if local.shape[0] else 0
        block = local.new_zeros(units, local.shape[1])
        block[first : first + local.shape[0]] = local
        wide.append(block)
        spans.append((first, local.shape[0]))
        owners += [gradient] * units
    joined = sum_over_shards(torch.cat(wide), owners)
    return [
        block[first : first + length]
        for block, (first, length) in zip(joined.split_with_sizes([len(block) for block in wide]), spans, strict=True)
    ]


def same_layout(entry: Entry) -> tuple[Tensor, Tensor]:
    """The local parts of a parameter and its gradient; ValueError when they are sharded differently."""
    parameter, gradient = entry.parameter, entry.parameter.grad
    assert gradient is not None
    if type(gradient) is Tensor:
        return parameter, gradient
    weight, local = local_part(parameter.detach()), local_part(gradient)
    if weight.shape != local.shape:
        raise ValueError(
            f"the gradient of {entry.name} is laid out differently across ranks than its weight: "
            f"{getattr(gradient, 'placements', 'whole')} against {getattr(parameter, 'placements', 'whole')}"
        )
    return weight, local

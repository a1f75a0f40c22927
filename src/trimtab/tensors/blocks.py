"""Blocks: gradients as rows of units, gathered to a bounded size so that few calls serve many of them.

Small tensors of one shape are stacked into a copy, so that one kernel serves all of them; larger ones are taken together
where they lie; the largest are cut between their units. Stacking large tensors would cost more than it saves.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.tensors.passes import PIECE_ON_ACCELERATOR, working_dtype
from trimtab.tensors.unit_sums import unit_squares, unit_sums
from trimtab.tensors.units import Item, rows_of

STACKED = 1 << 13
"""Elements up to which tensors of one shape are stacked: beyond it a call for each costs less than the copies."""
BLOCK_ON_CPU = 1 << 22
"""Elements in a block on the CPU: bounds the copies to 16 MiB. Smaller blocks would stay in a nearer cache, but cost more in
calls than that saves."""


class Block(NamedTuple):
    """Some units of one size, ready to be worked on in place.

    Attributes:
        rows: tensors of shape (units, ...) in float32 or float64, the units first.
        positions: the items these units are of.
        units: which of the units, where the items are not stacked.
        targets: the gradients that `rows` is a copy of; empty where it is a view.
        sources: the tensors these units are of, in the order of `positions`.
    """

    rows: list[Tensor]
    positions: list[int]
    units: slice | None
    targets: list[Tensor]
    sources: list[Tensor]

    @property
    def elements(self) -> int:
        """Elements in one unit."""
        return self.rows[0].numel() // self.rows[0].shape[0]

    def write_back(self) -> None:
        """Round the rows into the gradients they were copied from."""
        if not self.targets:
            return
        copies = self.rows
        if self.units is None:
            copies = list(copies[0].view(len(self.targets), *self.targets[0].shape).unbind())
        torch._foreach_copy_(self.targets, copies)

    def same_units_of(self, others: Sequence[Item]) -> list[Tensor]:
        """The same units of other tensors of the same shapes (the weights), to be read only: element by element the same
        indices, whatever the layout of either.

        Example:
            >>> gradient = torch.arange(16.0).view(1, 2, 2, 4).to(memory_format=torch.channels_last)
            >>> (block,) = blocks([Item(gradient, 0)])
            >>> bool((block.same_units_of([Item(gradient.contiguous(), 0)])[0] == block.rows[0]).all())
            True
        """
        items = [others[position] for position in self.positions]
        if self.units is None:
            return [stacked(items)]
        rows = [rows_of(*item, like) for item, like in zip(items, self.sources, strict=True)]
        return rows if self.units.stop - self.units.start >= len(rows[0]) else [row[self.units] for row in rows]


def norms(rows: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of every unit, float64; shape (all units, 1).

    Example:
        >>> norms([torch.tensor([[3e30, 4e30]])])
        tensor([[5.0000e+30]], dtype=torch.float64)
    """
    return unit_squares(rows).sqrt_()


def means(rows: Sequence[Tensor]) -> Tensor:
    """Mean of every unit, float64; shape (all units, 1)."""
    return unit_sums(rows).div_(rows[0].numel() // rows[0].shape[0])


def columns(joined: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """A tensor of shape (all units, 1) cut into one column per part of `rows`, of its dtype, shaped to broadcast against it."""
    joined = joined.to(rows[0].dtype)
    cut = [joined] if len(rows) == 1 else joined.split_with_sizes([part.shape[0] for part in rows])
    return [
        column if part.ndim == 2 else column.view(-1, *[1] * (part.ndim - 1))
        for column, part in zip(cut, rows, strict=True)
    ]


def stacked(items: Sequence[Item]) -> Tensor:
    """Copies of tensors of one shape as one tensor of shape (all units, elements), each in its logical order."""
    tensors = [item.tensor.contiguous() for item in items]
    first = tensors[0]
    together = torch.cat(tensors) if first.ndim else torch.stack(tensors)
    return together.view(len(tensors) if items[0].axis is None else len(tensors) * first.shape[0], -1)


def blocks(items: Sequence[Item]) -> Iterator[Block]:
    """All units of all items that have elements; `write_back` stores what was done to a block.

    Example:
        >>> weights = [torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 200, 200)]
        >>> [[rows.shape for rows in block.rows] for block in blocks([Item(weight, 0) for weight in weights])]
        [[torch.Size([4, 3])], [torch.Size([3, 40000])]]
    """
    alike: dict[tuple[object, ...], list[int]] = {}
    for position, (tensor, axis) in enumerate(items):
        alike.setdefault((tensor.shape, axis, tensor.dtype, tensor.device, tensor.is_contiguous()), []).append(position)
    for positions in alike.values():
        first, axis = items[positions[0]]
        size, limit = first.numel(), BLOCK_ON_CPU if first.device.type == "cpu" else PIECE_ON_ACCELERATOR
        if not size:
            continue
        together = max(1, limit // size)
        stack = size <= STACKED and axis in (None, 0) and first.is_contiguous()
        for start in range(0, len(positions), together):
            taken = positions[start : start + together]
            members = [items[position] for position in taken]
            yield from [_stack(members, taken)] if stack else _in_place(members, taken, limit)


def _stack(members: Sequence[Item], positions: list[int]) -> Block:
    rows = stacked(members)
    tensors = [member.tensor for member in members]
    return Block([rows.to(working_dtype(rows))], positions, None, tensors, tensors)


def _in_place(members: Sequence[Item], positions: list[int], limit: int) -> Iterator[Block]:
    views, tensors = [rows_of(*member) for member in members], [member.tensor for member in members]
    step = max(1, limit * views[0].shape[0] // views[0].numel())
    dtype = working_dtype(views[0])
    for start in range(0, views[0].shape[0], step):
        units = slice(start, start + step)
        parts = views if step >= views[0].shape[0] else [view[units] for view in views]
        if parts[0].dtype == dtype:
            yield Block(parts, positions, units, [], tensors)
        else:
            yield Block([part.to(dtype) for part in parts], positions, units, parts, tensors)

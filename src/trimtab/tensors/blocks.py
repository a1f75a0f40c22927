"""Blocks: gradients as rows of units, gathered to a bounded size so that few calls serve many of them.

Small tensors of one shape are stacked into a copy, so that one kernel serves all of them; larger ones are taken together
where they lie; the largest are cut between their units. Stacking large tensors would cost more than it saves.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.tensors.passes import PIECE_ON_ACCELERATOR, working_dtype
from trimtab.tensors.unit_sums import unit_norms, unit_sums
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
        axis: their dimension that indexes units.
    """

    rows: list[Tensor]
    positions: list[int]
    units: slice | None
    targets: list[Tensor]
    sources: list[Tensor]
    axis: int | None

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

    def same_units_of(self, others: Sequence[Tensor]) -> list[Tensor]:
        """The same units of other tensors of the same shapes (the weights), one for each item, to be read only: element by
        element the same indices, whatever the layout of either.

        Example:
            >>> gradient = torch.arange(16.0).view(1, 2, 2, 4).to(memory_format=torch.channels_last)
            >>> (block,) = blocks([Item(gradient, 0)])
            >>> bool((block.same_units_of([gradient.contiguous()])[0] == block.rows[0]).all())
            True
        """
        tensors = [others[position] for position in self.positions]
        if self.units is None:
            return [stacked(tensors, self.axis)]
        rows = _views(tensors, self.axis, self.sources)
        return rows if self.units.stop - self.units.start >= len(rows[0]) else [row[self.units] for row in rows]


def norms(rows: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of every unit, float64; shape (all units, 1).

    Example:
        >>> norms([torch.tensor([[3e30, 4e30]])])
        tensor([[5.0000e+30]], dtype=torch.float64)
    """
    return unit_norms(rows)


def means(rows: Sequence[Tensor]) -> Tensor:
    """Mean of every unit, float64; shape (all units, 1)."""
    return unit_sums(rows).div_(rows[0].numel() // rows[0].shape[0])


def columns(joined: Tensor, rows: Sequence[Tensor]) -> list[Tensor]:
    """A tensor of shape (all units, 1) cut into one column per part of `rows`, of its dtype, shaped to broadcast against it."""
    joined = joined.to(rows[0].dtype)
    cut = [joined] if len(rows) == 1 else joined.split_with_sizes([part.shape[0] for part in rows])
    if rows[0].ndim == 2:
        return list(cut)
    return [column.view(-1, *[1] * (part.ndim - 1)) for column, part in zip(cut, rows, strict=True)]


def stacked(tensors: Sequence[Tensor], axis: int | None) -> Tensor:
    """Copies of tensors of one shape as one tensor of shape (all units, elements), each in its logical order."""
    tensors = [tensor.contiguous() for tensor in tensors]
    first = tensors[0]
    together = torch.cat(tensors) if first.ndim else torch.stack(tensors)
    return together.view(len(tensors) if axis is None else len(tensors) * first.shape[0], -1)


def _views(tensors: Sequence[Tensor], axis: int | None, like: Sequence[Tensor]) -> list[Tensor]:
    """`rows_of` each of some tensors of one shape, in the memory order of others, which all have one layout."""
    if axis in (None, 0) and like[0].is_contiguous():  # most of them: as little as can be
        units = 1 if axis is None else like[0].shape[0]
        return [tensor.reshape(units, -1) for tensor in tensors]
    return [rows_of(tensor, axis, of) for tensor, of in zip(tensors, like, strict=True)]


def blocks(items: Sequence[Item]) -> Iterator[Block]:
    """All units of all items that have elements; `write_back` stores what was done to a block.

    Example:
        >>> weights = [torch.ones(2, 3), torch.ones(2, 3), torch.ones(3, 200, 200)]
        >>> [[rows.shape for rows in block.rows] for block in blocks([Item(weight, 0) for weight in weights])]
        [[torch.Size([4, 3])], [torch.Size([3, 40000])]]
    """
    kinds = tuple(
        [(*tensor.shape, axis, tensor.dtype, tensor.device, tensor.is_contiguous()) for tensor, axis in items]
    )
    for positions, stack in _together(kinds, BLOCK_ON_CPU, PIECE_ON_ACCELERATOR):
        tensors, axis = [items[position].tensor for position in positions], items[positions[0]].axis
        if stack:
            rows = stacked(tensors, axis)
            yield Block([rows.to(working_dtype(rows))], positions, None, tensors, tensors, axis)
        else:
            yield from _in_place(tensors, axis, positions)


@lru_cache(maxsize=32)
def _together(kinds: tuple[Any, ...], on_cpu: int, elsewhere: int) -> list[tuple[list[int], bool]]:
    """Positions of those that are worked on together, and whether as one copy; the same from step to step."""
    alike: dict[Any, list[int]] = {}
    for position, kind in enumerate(kinds):
        alike.setdefault(kind, []).append(position)
    found = []
    for (*shape, axis, _, device, contiguous), positions in alike.items():
        if size := math.prod(shape):
            together = max(1, (on_cpu if device.type == "cpu" else elsewhere) // size)
            stack = size <= STACKED and axis in (None, 0) and contiguous
            found += [(positions[start : start + together], stack) for start in range(0, len(positions), together)]
    return found


def _in_place(tensors: list[Tensor], axis: int | None, positions: list[int]) -> Iterator[Block]:
    views, limit = (
        _views(tensors, axis, tensors),
        BLOCK_ON_CPU if tensors[0].device.type == "cpu" else PIECE_ON_ACCELERATOR,
    )
    step = max(1, limit * views[0].shape[0] // views[0].numel())
    dtype = working_dtype(views[0])
    for start in range(0, views[0].shape[0], step):
        units = slice(start, start + step)
        parts = views if step >= views[0].shape[0] else [view[units] for view in views]
        if parts[0].dtype == dtype:
            yield Block(parts, positions, units, [], tensors, axis)
        else:
            yield Block([part.to(dtype) for part in parts], positions, units, parts, tensors, axis)

"""Centring and scaling unit by unit: what Centralize, ZScore and Autoscale share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import local_part
from trimtab.parameters import Entry
from trimtab.tensors.blocks import BLOCK_ON_CPU, Block, blocks, columns, means, norms
from trimtab.tensors.moments import Moments, pooled
from trimtab.tensors.passes import FUSED, working_dtype
from trimtab.tensors.unit_sums import unit_deviations, unit_moments
from trimtab.tensors.units import (
    Item,
    channel_axis,
    is_cut,
    items_of,
    over_ranks,
    row_elements,
    rows_of,
)

Factor = Callable[[Tensor, int | Tensor], Tensor]
"""(norms of the centred units, elements per unit) -> factors of the same shape."""


def finite_or(values: Tensor, instead: float) -> Tensor:
    """`values` with everything that is not finite replaced; in place.

    Example:
        >>> finite_or(torch.tensor([2.0, float("inf")]), 1.0)
        tensor([2., 1.])
    """
    return values.nan_to_num_(instead, instead, instead)


def factor_of(norm: Tensor, number: int | Tensor, factor: Factor) -> Tensor:
    """`factor(norm, number)`, 1 where the norm is not finite; uses up the norm."""
    return finite_or(factor(finite_or(norm, math.nan), number), 1.0)


def centre_channels_(chosen: Sequence[Entry], factor: Factor | Tensor | None = None) -> None:
    """`g <- (g - mean of its channel) * factor`, in place; a channel whose mean is not finite is not centred.

    Args:
        chosen: entries with a dense real gradient.
        factor: a function of the centred channel's norm, a tensor of shape () for all, or None for 1.
    """
    whole, cut = gradient_items(chosen)
    centre_units_(whole, factor)
    if cut:
        _centre_cut_(cut, factor)


def gradient_items(chosen: Sequence[Entry]) -> tuple[list[Item], list[tuple[Entry, int | None]]]:
    """The gradients whose channels are whole on this rank, as items; the entries whose channels are spread, with the axis."""
    whole: list[Item] = []
    cut: list[tuple[Entry, int | None]] = []
    for entry in chosen:
        gradient, axis = entry.parameter.grad, channel_axis(entry)
        assert gradient is not None
        if type(gradient) is Tensor and entry.stack_axis is None:  # most of them: as little as can be
            whole.append(Item(gradient, axis))
        elif is_cut(entry, gradient):
            cut.append((entry, axis))
        else:
            whole += items_of(entry, local_part(gradient))
    return whole, cut


def centre_units_(items: Sequence[Item], factor: Factor | Tensor | None = None) -> None:
    """The same for the units of local tensors, none of which is spread over ranks."""
    for block in blocks(items):
        rows = block.rows
        torch._foreach_sub_(rows, columns(finite_or(means(rows), 0.0), rows))
        if callable(factor):
            torch._foreach_mul_(rows, columns(factor_of(norms(rows), block.elements, factor), rows))
        elif factor is not None:
            torch._foreach_mul_(rows, factor.to(rows[0]))
        block.write_back()


def centre_known_(items: Sequence[Item], factor: Tensor, known: UnitStatistics) -> None:
    """The same with one factor for all, where the units' sums are known already: on a CPU one pass does the work."""
    for block, sums in zip(known.blocks or blocks(items), known.sums, strict=True):
        rows, number = block.rows, block.elements
        total, within = torch.split(sums, 1, 1)
        mean = finite_or(total / number, 0.0)
        if rows[0].device.type == "cpu" and bool((mean.square() * number <= FUSED**2 * within).all()):
            alpha = float(factor)
            for row, shift in zip(rows, columns(mean * -factor, rows), strict=True):
                torch.add(shift, row, alpha=alpha, out=row)
        else:  # a mean far above its unit's deviation would cancel
            torch._foreach_sub_(rows, columns(mean, rows))
            torch._foreach_mul_(rows, factor.to(rows[0]))
        block.write_back()


class UnitStatistics(NamedTuple):
    """What was read of the units of some tensors.

    Attributes:
        sums: `sum x` and `sum (x - mean)^2` of every unit, block by block, shape (units, 2), float64.
        together: moments of all of them, as one entry.
        blocks: the blocks themselves, where they may be kept until they are written to.
    """

    sums: list[Tensor]
    together: Moments
    blocks: list[Block]


def unit_statistics(items: Sequence[Item]) -> UnitStatistics:
    """The statistics of local tensors, none of whose units is spread over ranks."""
    sums, kept, copied = [], [], 0
    device = items[0].tensor.device
    for block in blocks(items):
        sums.append(unit_deviations(block.rows))
        copied += block.elements * len(sums[-1]) if block.targets else 0
        kept.append((block.elements, block if copied <= BLOCK_ON_CPU else None))
    number = [torch.full((len(of), 1), float(elements)) for of, (elements, _) in zip(sums, kept, strict=True)]
    all_sums = torch.cat([of.to(device) for of in sums])
    together = pooled(Moments(torch.cat(number).to(all_sums).squeeze(1), *all_sums.unbind(1)))
    return UnitStatistics(
        sums, together, [block for _, block in kept if block is not None] if copied <= BLOCK_ON_CPU else []
    )


def _centre_cut_(cut: Sequence[tuple[Entry, int | None]], factor: Factor | Tensor | None) -> None:
    """The same for units spread over ranks: the sums of their parts are added first, by one collective."""
    gradients = [entry.parameter.grad for entry, _ in cut if entry.parameter.grad is not None]
    axes = [axis for _, axis in cut]
    views = [rows_of(local_part(gradient), axis) for gradient, axis in zip(gradients, axes, strict=True)]
    counts = [row_elements(entry, axis) for entry, axis in cut]
    parts = [unit_moments(view)[:, 1:] for view in views]
    for view, count, joined in zip(views, counts, over_ranks(parts, gradients, axes), strict=True):
        total, within, between = torch.split(joined, 1, 1)
        rows = view.to(working_dtype(view))
        rows = rows - columns(finite_or(total / count, 0.0), [rows])[0]
        if callable(factor):
            norm = (within + between - total * total / count).clamp_(min=0).sqrt_()
            rows.mul_(columns(factor_of(norm, count, factor), [rows])[0])
        elif factor is not None:
            rows.mul_(factor.to(rows))
        view.copy_(rows)

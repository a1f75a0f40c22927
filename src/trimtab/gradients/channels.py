"""Centring and scaling unit by unit: what Centralize, ZScore and Autoscale share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimtab.collectives import local_part
from trimtab.parameters import Entry
from trimtab.tensors.blocks import (
    blocks,
    columns,
    means,
    norms,
)
from trimtab.tensors.passes import working_dtype
from trimtab.tensors.unit_sums import unit_moments
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
    whole: list[Item] = []
    cut: list[tuple[Entry, int | None]] = []
    for entry in chosen:
        gradient = entry.parameter.grad
        assert gradient is not None
        if is_cut(entry, gradient):
            cut.append((entry, channel_axis(entry)))
        else:
            whole += items_of(entry, gradient if type(gradient) is Tensor else local_part(gradient))
    centre_units_(whole, factor)
    if cut:
        _centre_cut_(cut, factor)


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

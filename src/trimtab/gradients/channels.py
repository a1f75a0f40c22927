"""Centring and scaling channel by channel: what Centralize and the channel forms of ZScore and Autoscale share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trimtab.collectives import local_part
from trimtab.gradients.passes import by_kind, piece_limit, pieces, widened, working_dtype, write_back
from trimtab.gradients.units import (
    channel_axis,
    columns_for,
    is_cut,
    norms_of_rows,
    over_ranks,
    row_elements,
    rows_of,
    sums_of_rows,
)
from trimtab.parameters import Entry

Factor = Callable[[Tensor, Tensor], Tensor]
"""(squared deviations, elements per channel), each of shape (channels, 1) -> factor of the same shape."""


def finite_or(values: Tensor, instead: float) -> Tensor:
    """`values` with everything that is not finite replaced; in place.

    Example:
        >>> finite_or(torch.tensor([2.0, float("inf")]), 1.0)
        tensor([2., 1.])
    """
    return values.nan_to_num_(instead, instead, instead)


def centre_channels_(chosen: Sequence[Entry], factor: Factor | Tensor | None = None) -> None:
    """`g <- (g - mean of its channel) * factor`, in place; a channel whose mean is not finite is not centred.

    Args:
        chosen: entries with a dense real gradient.
        factor: a function of the channel's squared deviations, a tensor of shape () for all, or None.
    """
    whole: list[tuple[Tensor, int]] = []
    cut: list[tuple[Entry, int | None]] = []
    for entry in chosen:
        axis = channel_axis(entry)
        gradient = entry.parameter.grad
        assert gradient is not None
        if is_cut(gradient, axis):
            cut.append((entry, axis))
        elif (rows := rows_of(local_part(gradient), axis)).numel():
            whole.append((rows, row_elements(entry, axis)))
    for group in by_kind([rows for rows, _ in whole]):
        members = [whole[position] for position in group]
        limit = piece_limit(members[0][0].device)
        for owners, parts in pieces([rows for rows, _ in members], limit):
            _centre_piece_(parts, [members[owner][1] for owner in owners], factor)
    if cut:
        _centre_cut_(cut, factor)


def _per_unit(parts: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Elements per channel, shape (all units, 1)."""
    numbers = torch.tensor(counts, dtype=working_dtype(parts[0]), device=parts[0].device)
    units = torch.tensor([part.shape[0] for part in parts], device=parts[0].device)
    total = sum(part.shape[0] for part in parts)
    return torch.repeat_interleave(numbers, units, output_size=total).unsqueeze(1)


def _centre_piece_(parts: list[Tensor], counts: list[int], factor: Factor | Tensor | None) -> None:
    worked = widened(parts)
    if len(worked) == 1:
        numbers: Tensor | int = counts[0]
        means = finite_or(sums_of_rows(worked[0]).div_(numbers), 0.0)
    else:
        numbers = _per_unit(worked, counts)
        means = finite_or(torch.cat([sums_of_rows(part) for part in worked]).div_(numbers), 0.0)
    torch._foreach_sub_(worked, columns_for(worked, means))
    if callable(factor):
        squares = torch.cat([norms_of_rows(part) for part in worked]).square_()
        if isinstance(numbers, int):
            numbers = torch.full_like(squares, numbers)
        torch._foreach_mul_(worked, columns_for(worked, finite_or(factor(squares, numbers), 1.0)))
    elif factor is not None:
        torch._foreach_mul_(worked, factor.to(worked[0]))
    write_back(worked, parts)


def _centre_cut_(cut: Sequence[tuple[Entry, int | None]], factor: Factor | Tensor | None) -> None:
    """The same for channels spread over ranks: their parts are summed up first, by one collective."""
    gradients = [entry.parameter.grad for entry, _ in cut if entry.parameter.grad is not None]
    axes = [axis for _, axis in cut]
    views = [rows_of(local_part(gradient), axis) for gradient, axis in zip(gradients, axes, strict=True)]
    counts = [row_elements(entry, axis) for entry, axis in cut]
    sums = []
    for view in views:
        rows = view.to(working_dtype(view))
        here = max(1, view.numel() // max(1, view.shape[0]))
        mean = sums_of_rows(rows) / here
        (column,) = columns_for([rows], mean)
        squares = norms_of_rows(rows - column).double().square()
        mean = mean.double()
        sums.append(torch.cat([mean * here, squares, mean * mean * here], 1))
    for view, count, joined in zip(views, counts, over_ranks(sums, gradients, axes), strict=True):
        total, within, between = torch.split(joined, 1, 1)
        mean = finite_or(total / count, 0.0)
        rows = view.to(working_dtype(view))
        rows = rows - columns_for([rows], mean.to(rows.dtype))[0]
        if callable(factor):
            squares = (within + between - total * total / count).clamp_(min=0)
            scale = finite_or(factor(squares, torch.full_like(squares, count)), 1.0)
            rows.mul_(columns_for([rows], scale.to(rows.dtype))[0])
        elif factor is not None:
            rows.mul_(factor.to(rows))
        view.copy_(rows)

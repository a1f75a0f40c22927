"""Passes over many gradients: cut into pieces that stay in the cache, batched where there are many small ones.

A piece is widened to float32 where the gradient is a half, worked on, and rounded back once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.collectives import is_sharded, local_part
from trimtab.parameters import Entry
from trimtab.tensors.chunks import layout_of

PIECE_ON_CPU = 1 << 18
"""Elements worked on together on the CPU: 1 MiB of float32, so that the second pass over them reads the cache."""
PIECE_ON_ACCELERATOR = 1 << 26
"""The same elsewhere, where few large kernels are best; bounds the float32 copies of halves to 256 MiB."""

FUSED = 16.0
"""Shifts of at most so many standard deviations are taken off by one fused pass on a CPU: its rounding error is that share of
the last digit; larger ones would cancel."""

FUSED_FROM = 1 << 11
"""Elements from which a call of its own for each tensor costs less than a second pass."""

Group = list[int]


def piece_limit(device: torch.device) -> int:
    """Elements worked on together on `device`."""
    return PIECE_ON_CPU if device.type == "cpu" else PIECE_ON_ACCELERATOR


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for every other float.

    Example:
        >>> working_dtype(torch.ones(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def by_kind(tensors: Sequence[Tensor]) -> list[Group]:
    """Positions of the tensors that share a device and a dtype, kind by kind, so that foreach can take them together.

    Example:
        >>> by_kind([torch.ones(1), torch.ones(1).double(), torch.ones(2)])
        [[0, 2], [1]]
    """
    kinds: dict[tuple[torch.device, torch.dtype], Group] = {}
    for position, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(position)
    return list(kinds.values())


def local_gradients(chosen: Sequence[Entry]) -> list[Tensor]:
    """The part of each gradient that lies on this rank."""
    gradients = [entry.parameter.grad for entry in chosen]
    return [
        gradient if type(gradient) is Tensor else local_part(gradient)  # the first is every plain run's case, and quick
        for gradient in gradients
        if gradient is not None
    ]


def gradients_of(chosen: Sequence[Entry]) -> list[Tensor]:
    """The gradients themselves, sharded ones whole: the owners of what `local_gradients` gives, in its order."""
    return [entry.parameter.grad for entry in chosen if entry.parameter.grad is not None]


def refuse_sharded(what: str, parameters: Sequence[Entry]) -> None:
    """ValueError, with the name, where a weight is sharded (DTensor); `what` says who does what with whole tensors."""
    for entry in parameters:
        if is_sharded(entry.parameter):
            raise ValueError(
                f"{what} whole tensors and does not take sharded weights (DTensor), such as {entry.name}; train replicated "
                "(DDP)"
            )


def flat_view(tensor: Tensor) -> Tensor:
    """`tensor` as a flat view in its own memory order, or itself where its layout has gaps.

    Example:
        >>> picture = torch.zeros(2, 3, 4, 4).to(memory_format=torch.channels_last)
        >>> flat_view(picture).shape, flat_view(picture).data_ptr() == picture.data_ptr()
        (torch.Size([96]), True)
    """
    if tensor.is_contiguous():
        return tensor.view(-1)
    ordered = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    return ordered.view(-1) if ordered.is_contiguous() else tensor


def flat_part(tensor: Tensor, position: int) -> Tensor:
    """One dimension, in whatever order lies nearest in memory; a copy only where the layout has gaps.

    Raises:
        TypeError: not a dense real floating-point tensor; the message names `position`.
    """
    if tensor.is_contiguous() and tensor.dtype == torch.float32:  # most of them: as little as can be
        return tensor.view(-1)
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise TypeError(
            f"tensor {position} must be a dense real floating-point one, got {tensor.dtype}, {tensor.layout}"
        )
    return flattened([tensor.detach()])[0]


def flattened(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Tensors of one shape as flat ones in the memory order of the first: views where their layout allows, else copies.

    Example:
        >>> picture = torch.zeros(1, 2, 2, 2).to(memory_format=torch.channels_last)
        >>> (flat,) = flattened([picture])
        >>> flat.data_ptr() == picture.data_ptr()
        True
    """
    if all(tensor.is_contiguous() for tensor in tensors):
        return tuple(tensor.view(-1) for tensor in tensors)
    order = sorted(range(tensors[0].ndim), key=tensors[0].stride, reverse=True)
    return tuple(tensor.permute(order).reshape(-1) for tensor in tensors)


def pieces(views: Iterable[Tensor], limit: int) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Cut views along their first dimension and gather the parts, at most `limit` elements at a time where possible.

    Yields:
        The position each part comes from, and the parts.

    Example:
        >>> [owners for owners, _ in pieces([torch.ones(3), torch.ones(4), torch.ones(9)], limit=8)]
        [[0, 1], [2], [2]]
    """
    owners: list[int] = []
    parts: list[Tensor] = []
    filled = 0
    for owner, view in enumerate(views):
        elements = view.numel()
        if elements == 0:
            continue
        cut = [view] if elements <= limit else torch.split(view, max(1, limit * view.shape[0] // elements))
        for part in cut:
            size = part.numel()
            if parts and filled + size > limit:
                yield owners, parts
                owners, parts, filled = [], [], 0
            owners.append(owner)
            parts.append(part)
            filled += size
    if parts:
        yield owners, parts


def widened(parts: list[Tensor]) -> list[Tensor]:
    """The parts themselves in float32 or float64, a float32 copy of a half."""
    return parts if parts[0].dtype == working_dtype(parts[0]) else [part.to(working_dtype(part)) for part in parts]


def write_back(worked: list[Tensor], parts: list[Tensor]) -> None:
    """Round the float32 copies into the halves they stand for; nothing to do where they are the same."""
    if worked is not parts:
        torch._foreach_copy_(parts, worked)


def shift_and_scale_(
    gradients: Sequence[Tensor], shift: Tensor | None, factor: Tensor, spread: Tensor | None = None
) -> None:
    """`g <- (g - shift) * factor` for every gradient, in place.

    Args:
        gradients: real tensors, of any devices and dtypes.
        shift: finite, shape (gradients,), or None for no shift.
        factor: shape (gradients,), or () for one factor for all.
        spread: standard deviations, shape (gradients,): where given, one pass instead of two does the work on a CPU.
    """
    left = list(range(len(gradients)))
    if shift is not None and spread is not None:
        left = _fused_on_cpu_(gradients, shift, factor.expand(len(gradients)), spread)
        left = _small_on_cpu_(gradients, left, shift, factor.expand(len(gradients)))
    for group in by_kind([gradients[position] for position in left]):
        members = [left[position] for position in group]
        first = gradients[members[0]]
        dtype, device = working_dtype(first), first.device
        factors = factor.to(device, dtype)
        if shift is None and factor.ndim == 0 and first.dtype == dtype:
            torch._foreach_mul_([gradients[position] for position in members], factors)
            continue
        limit = piece_limit(device)
        views = [gradients[position] for position in members]
        views = [gradient if gradient.numel() <= limit else flat_view(gradient) for gradient in views]
        # numbers where they are at hand: a call with them costs less
        apart: Callable[[Tensor], Sequence[Any]] = Tensor.tolist if device.type == "cpu" else Tensor.unbind
        each = None if factor.ndim == 0 else apart(factors)
        shifts = None if shift is None else apart(shift.to(device, dtype))
        for owners, parts in pieces(views, limit):
            worked = widened(parts)
            if shifts is not None:
                torch._foreach_sub_(worked, [shifts[members[owner]] for owner in owners])
            if each is None:
                torch._foreach_mul_(worked, factors)
            else:
                torch._foreach_mul_(worked, [each[members[owner]] for owner in owners])
            write_back(worked, parts)


def _small_on_cpu_(gradients: Sequence[Tensor], left: Sequence[int], shift: Tensor, factor: Tensor) -> list[int]:
    """The same for many small gradients together, copied into rows and back; returns what is left."""
    small = [at for at in left if gradients[at].numel() <= FUSED_FROM and gradients[at].is_contiguous()]
    if len(small) < 2 or shift.device.type != "cpu" or any(gradients[at].device.type != "cpu" for at in small):
        return list(left)
    for group in by_kind([gradients[at] for at in small]):
        members = [small[at] for at in group]
        flats = [gradients[at].view(-1) for at in members]
        chunks = layout_of(flats, working_dtype(flats[0]))
        shifts, factors = chunks.column(shift[members]), chunks.column(factor[members])
        copy = chunks.buffer()
        for batch in chunks.batches:
            values = chunks.gather(batch, flats, copy[: batch.number])
            rows = torch.sub(values, shifts[batch.rows], out=copy[: batch.number]).mul_(factors[batch.rows])
            torch._foreach_copy_(*chunks.parts_of(batch, flats, rows))
    done = set(small)
    return [at for at in left if at not in done]


def _fused_on_cpu_(gradients: Sequence[Tensor], shift: Tensor, factor: Tensor, spread: Tensor) -> list[int]:
    """`g <- factor * g - shift * factor` in one pass where the values are at hand (on a CPU); returns what is left."""
    if shift.device.type != "cpu":
        return list(range(len(gradients)))
    harmless = (shift.abs() <= FUSED * spread).tolist()
    factors = factor.tolist()
    constants = {dtype: (shift * -factor).to(dtype).unbind() for dtype in (torch.float32, torch.float64)}
    left = []
    for position, gradient in enumerate(gradients):
        if not harmless[position] or gradient.numel() <= FUSED_FROM or gradient.device.type != "cpu":
            left.append(position)
            continue
        constant = constants[working_dtype(gradient)][position]
        if gradient.dtype == constant.dtype:
            torch.add(constant, gradient, alpha=factors[position], out=gradient)
            continue
        for _, parts in pieces([flat_view(gradient)], piece_limit(gradient.device)):
            for worked, part in zip(widened(parts), parts, strict=True):
                part.copy_(torch.add(constant, worked, alpha=factors[position], out=worked))
    return left

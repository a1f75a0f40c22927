"""Mean and variance of the magnitudes of many tensors, and the gradient pass that uses them.

The variance is summed around a mean taken first, so that mean >> standard deviation does not cancel, and the parts of a
tensor (cache-sized pieces, shards on other ranks) are joined in float64 by

    V = (sum M2_p + sum S_p^2 / n_p - S^2 / n) / n,    S = sum S_p,

where n_p, S_p and M2_p are the count, the sum and the sum of squared deviations from its own mean of part p.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import local_part, sum_over_shards

BATCH_ON_CPU = 1 << 20
"""Elements worked on together on the CPU: 4 MiB of float32, so that the passes over them mostly read the cache."""
BATCH_ON_ACCELERATOR = 1 << 26
"""The same elsewhere, where few large kernels are best; bounds the extra memory to two buffers of 256 MiB."""


class Moments(NamedTuple):
    """Number, mean and biased variance of the magnitudes, per tensor; float64, each of shape (tensors,)."""

    number: Tensor
    mean: Tensor
    variance: Tensor


class Batch(NamedTuple):
    """Stretches to be worked on together: which tensor each is of, how long it is, the flat tensors themselves."""

    owners: list[int]
    sizes: list[int]
    parts: list[tuple[Tensor, ...]]


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


def batch_limit(device: torch.device) -> int:
    """Elements worked on together on `device`."""
    return BATCH_ON_CPU if device.type == "cpu" else BATCH_ON_ACCELERATOR


def batches(rows: Sequence[tuple[Tensor, ...]]) -> Iterator[Batch]:
    """Cut rows of equally long flat tensors into stretches and gather these, at most `batch_limit` elements at a time.

    Example:
        >>> [batch.sizes for batch in batches([(torch.ones(3),), (torch.ones(4),)])]
        [[3, 4]]
    """
    limit = batch_limit(rows[0][0].device)
    batch, filled = Batch([], [], []), 0
    for owner, row in enumerate(rows):
        length = row[0].numel()
        whole = length <= limit
        for part in [row] if whole else zip(*(torch.split(tensor, limit) for tensor in row), strict=True):
            size = part[0].numel()
            if batch.parts and filled + size > limit:
                yield batch
                batch, filled = Batch([], [], []), 0
            if size:
                batch.owners.append(owner)
                batch.sizes.append(size)
                batch.parts.append(part)
                filled += size
    if batch.parts:
        yield batch


def working_dtype(tensor: Tensor) -> torch.dtype:
    """float64 for float64, float32 for every other float."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def widened(gradients: Sequence[Tensor]) -> list[Tensor]:
    """The tensors themselves in float32 or float64, a float32 copy of a smaller float."""
    return [gradient.to(working_dtype(gradient)) for gradient in gradients]


def write_back(targets: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Round float32 working copies into the bf16 or fp16 gradients they stand for."""
    for target, gradient in zip(targets, gradients, strict=True):
        if target is not gradient:
            gradient.copy_(target)


def flat_with_gradients(parameters: Sequence[Tensor]) -> tuple[list[tuple[Tensor, ...]], list[tuple[Tensor, Tensor]]]:
    """Flat (weight, gradient) of each local part, and the (flat copy, gradient) of those that could not be viewed flat.

    Raises:
        ValueError: a gradient is not sharded as its parameter is.
    """
    rows, copied = [], []
    for parameter in parameters:
        assert parameter.grad is not None
        weight, gradient = local_part(parameter), local_part(parameter.grad)
        if weight.shape != gradient.shape:
            raise ValueError(
                f"the gradient of a parameter of shape {tuple(parameter.shape)} is laid out differently across ranks: "
                f"{getattr(parameter, 'placements', 'whole')} against {getattr(parameter.grad, 'placements', 'whole')}"
            )
        row = flattened([weight, gradient])
        if row[1].data_ptr() != gradient.data_ptr():
            # the copy is worked on in the gradient's own order and copied back
            row = (weight.reshape(-1), gradient.reshape(-1).clone())
            copied.append((row[1], gradient))
        rows.append(row)
    return rows, copied


def scratch_for(rows: Sequence[tuple[Tensor, ...]]) -> Tensor:
    """A buffer for the longest batch of `rows`; reused, as fresh memory costs more than the arithmetic."""
    first = rows[0][0]
    total = sum(row[0].numel() for row in rows)
    return torch.empty(min(total, batch_limit(first.device)), dtype=working_dtype(first), device=first.device)


def fill_magnitudes(buffer: Tensor, batch: Batch, radius: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Write `sqrt(w^2 + r)` of the batch into the buffer; returns the part in use and one view per stretch."""
    used = buffer[: sum(batch.sizes)]
    views = torch.split(used, batch.sizes)
    torch._foreach_copy_(views, [part[0] for part in batch.parts])
    return used.square_().add_(radius).sqrt_(), views


def _part_sums(views: tuple[Tensor, ...], number: Tensor, *, on_accelerator: bool) -> Tensor:
    """Per stretch: sum, squared deviations from the stretch's mean, sum^2 / number; overwrites `views`."""

    def sums() -> Tensor:
        return torch.stack([view.sum() for view in views]).double()

    # In float64 where that is cheap and few kernels count; two float32 sums are three times faster on the CPU.
    total = torch.stack(torch._foreach_norm(views, 1, dtype=torch.float64)) if on_accelerator else sums()
    # The mean rounded to the working precision is only a shift; `left` is what the deviations from it still sum to.
    shift = (total / number).to(views[0].dtype)
    torch._foreach_sub_(views, shift.unbind())
    left = total - number * shift if on_accelerator else sums()
    squares = torch.stack(torch._foreach_norm(views, 2)).double().square()
    total = number * shift.double() + left
    return torch.stack([total, squares - left * left / number, total * total / number], dim=1)


def moments(parameters: Sequence[Tensor], smoothing: float) -> Moments:
    """Number, mean and biased variance of `sqrt(w^2 + r)` of each (whole) tensor; all of one device and dtype.

    Example:
        >>> moments([torch.tensor([[3.0, -5.0]])], smoothing=0.0).mean
        tensor([4.], dtype=torch.float64)
    """
    flat = [flattened([local_part(parameter)]) for parameter in parameters]
    buffer = scratch_for(flat)
    device = buffer.device
    radius = torch.full((), smoothing, dtype=buffer.dtype, device=device)
    rows = torch.zeros(len(parameters), 3, dtype=torch.float64, device=device)
    for batch in batches(flat):
        _, views = fill_magnitudes(buffer, batch, radius)
        number = torch.tensor(batch.sizes, dtype=torch.float64, device=device)
        sums = _part_sums(views, number, on_accelerator=device.type != "cpu")
        rows.index_add_(0, torch.tensor(batch.owners, device=device), sums)
    total, within, between = sum_over_shards(rows, parameters).unbind(1)
    number = torch.tensor([parameter.numel() for parameter in parameters], dtype=torch.float64, device=device)
    mean = total / number
    return Moments(number, mean, ((within + between - total * mean) / number).clamp_(min=0))


def add_gradients_(
    parameters: Sequence[Tensor], smoothing: float, mean: Tensor, constant: Tensor, slope: Tensor
) -> None:
    """Add `s * (constant + slope * (w~ - mean))` to `parameter.grad`; the last three have shape (tensors,)."""
    flat, copied = flat_with_gradients(parameters)
    magnitude_buffer, factor_buffer = scratch_for(flat), scratch_for(flat)
    dtype = factor_buffer.dtype
    shift = mean.to(dtype)
    # As in the sums, the rounded mean is an exact shift; what it lacks goes into the constant.
    shifts, slopes = shift.unbind(), slope.to(dtype).unbind()
    constants = (constant + slope * (shift - mean)).to(dtype).unbind()
    radius = torch.full((), smoothing, dtype=dtype, device=shift.device)
    for batch in batches(flat):
        weights, gradients = [part[0] for part in batch.parts], [part[1] for part in batch.parts]
        used, magnitudes = fill_magnitudes(magnitude_buffer, batch, radius)
        factors = torch.split(factor_buffer[: used.numel()].copy_(used), batch.sizes)
        torch._foreach_sub_(factors, [shifts[owner] for owner in batch.owners])
        torch._foreach_mul_(factors, [slopes[owner] for owner in batch.owners])
        torch._foreach_add_(factors, [constants[owner] for owner in batch.owners])
        targets = widened(gradients)
        if smoothing:
            torch._foreach_mul_(factors, weights)
            torch._foreach_addcdiv_(targets, factors, magnitudes)
        else:
            torch._foreach_copy_(magnitudes, weights)
            torch._foreach_addcmul_(targets, factors, torch.split(used.sign_(), batch.sizes))
        write_back(targets, gradients)
    finish(copied)


def finish(copied: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy back the flat copies that `flat_with_gradients` made."""
    for flat, gradient in copied:
        gradient.copy_(flat.view(gradient.shape))

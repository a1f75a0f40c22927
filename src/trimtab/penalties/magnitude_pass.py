"""Mean and variance of the magnitudes of many tensors, and the gradient pass that uses them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import local_part
from trimtab.tensors.moments import (
    Moments,
    joined,
    over_shards,
    stretch_moments,
)

BATCH_ON_CPU = 1 << 20
"""Elements worked on together on the CPU: 4 MiB of float32, so that the passes over them mostly read the cache."""
BATCH_ON_ACCELERATOR = 1 << 26
"""The same elsewhere, where few large kernels are best; bounds the extra memory to two buffers of 256 MiB."""


class Magnitudes(NamedTuple):
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


def finish(copied: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy back the flat copies that `flat_with_gradients` made."""
    for flat, gradient in copied:
        gradient.copy_(flat.view(gradient.shape))


class MagnitudePass:
    """Reads the moments of `w~ = sqrt(w^2 + r)` of several tensors of one device and dtype, then adds their gradient.

    Args:
        parameters: whole or sharded tensors.
        smoothing: r.
        gradients: whether `add_gradients_` will follow; every tensor must then have a gradient.

    Example:
        >>> MagnitudePass([torch.tensor([[3.0, -5.0]])], smoothing=0.0).moments().mean
        tensor([4.], dtype=torch.float64)
    """

    def __init__(self, parameters: Sequence[Tensor], smoothing: float, *, gradients: bool = False) -> None:
        self.parameters = parameters
        self.smoothing = smoothing
        self.copied: list[tuple[Tensor, Tensor]] = []
        if gradients:
            self.flat, self.copied = flat_with_gradients(parameters)
        else:
            self.flat = [flattened([local_part(parameter)]) for parameter in parameters]
        first = self.flat[0][0]
        self.device, self.dtype = first.device, working_dtype(first)
        self.batches = list(batches(self.flat))
        # One reused buffer: fresh memory costs more than the arithmetic.
        self.length = max((sum(batch.sizes) for batch in self.batches), default=0)
        self.buffer = self._buffer()
        self.radius = torch.full((), smoothing, dtype=self.dtype, device=self.device)
        self.shifts: tuple[Tensor, ...] = ()
        """Of the last batch summed: what was taken from each stretch's magnitudes to leave deviations in the buffer."""

    def _buffer(self) -> Tensor:
        return torch.empty(self.length, dtype=self.dtype, device=self.device)

    def _fill(self, batch: Batch) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Write the batch's magnitudes into the buffer; returns the part in use and one view per stretch."""
        used = self.buffer[: sum(batch.sizes)]
        views = torch.split(used, batch.sizes)
        torch._foreach_copy_(views, [part[0] for part in batch.parts])
        # without smoothing no square may overflow or vanish
        return used.square_().add_(self.radius).sqrt_() if self.smoothing else used.abs_(), views

    def moments(self) -> Magnitudes:
        """Number, mean and biased variance per tensor, over all ranks that hold parts of it."""
        nothing = torch.zeros(0, dtype=torch.float64, device=self.device)
        found = [Moments(nothing, nothing, nothing)]
        owners: list[int] = []
        for batch in self.batches:
            _, views = self._fill(batch)
            number = torch.tensor(batch.sizes, dtype=torch.float64, device=self.device)
            # only a shift, which need not be the mean to the last digit
            shift = (torch.stack([view.sum() for view in views]).double() / number).to(self.dtype)
            self.shifts = shift.unbind()
            torch._foreach_sub_(views, self.shifts)
            away = stretch_moments(views)
            found.append(Moments(number, number * shift.double() + away.total, away.squares))
            owners += batch.owners
        parts = Moments(*(torch.cat(column) for column in zip(*found, strict=True)))
        whole = over_shards(joined(parts, owners, len(self.parameters)), self.parameters)
        return Magnitudes(whole.number, whole.mean, whole.variance)

    def add_gradients_(self, mean: Tensor, constant: Tensor, slope: Tensor) -> None:
        """Add `s * (constant + slope * (w~ - mean))` to each gradient, s = w / w~; arguments of shape (tensors,).

        Follows `moments`, whose deviations are still there when one batch holds everything.
        """
        other = self._buffer()
        slopes = slope.to(self.dtype).unbind()
        for batch in self.batches:
            owners = torch.tensor(batch.owners, device=self.device)
            used, views = self.buffer[: sum(batch.sizes)], torch.split(self.buffer[: sum(batch.sizes)], batch.sizes)
            magnitude = other[: used.numel()]
            magnitudes = torch.split(magnitude, batch.sizes)
            if len(self.batches) == 1:
                shifts = self.shifts
                magnitude.copy_(used)
                torch._foreach_add_(magnitudes, shifts)
            else:
                shifts = mean[owners].to(self.dtype).unbind()
                self._fill(batch)
                magnitude.copy_(used)
                torch._foreach_sub_(views, shifts)
            # A shift is exact as a number of the working precision; what it lacks of the mean goes into the constant.
            lacking = torch.stack(shifts).double() - mean[owners]
            constants = (constant[owners] + slope[owners] * lacking).to(self.dtype).unbind()
            self._add_batch_(batch, views, [slopes[owner] for owner in batch.owners], constants, magnitudes)
        finish(self.copied)

    def _add_batch_(
        self,
        batch: Batch,
        deviations: tuple[Tensor, ...],
        slopes: list[Tensor],
        constants: tuple[Tensor, ...],
        magnitudes: tuple[Tensor, ...],
    ) -> None:
        weights, gradients = [part[0] for part in batch.parts], [part[1] for part in batch.parts]
        targets = widened(gradients)
        torch._foreach_mul_(deviations, slopes)
        torch._foreach_add_(deviations, constants)
        if self.smoothing:
            torch._foreach_mul_(deviations, weights)
            torch._foreach_addcdiv_(targets, deviations, magnitudes)
        else:
            torch._foreach_copy_(magnitudes, weights)
            torch._foreach_sign_(magnitudes)
            torch._foreach_addcmul_(targets, deviations, magnitudes)
        write_back(targets, gradients)

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

PIECE = 1 << 15
"""Elements worked on at a time on the CPU: 128 KiB of float32, so that each pass after the first reads the cache."""


class Moments(NamedTuple):
    """Number, mean and biased variance of the magnitudes, per tensor; float64, each of shape (tensors,)."""

    number: Tensor
    mean: Tensor
    variance: Tensor


def pieces(*tensors: Tensor, size: int = PIECE) -> Iterator[tuple[Tensor, ...]]:
    """The same stretches of several tensors of one shape, as views: flat ones of `size`, or the whole if they differ.

    Example:
        >>> [part.numel() for part, in pieces(torch.ones(3, 2), size=4)]
        [4, 2]
    """
    first = tensors[0]
    order = sorted(range(first.ndim), key=first.stride, reverse=True)
    permuted = [tensor.permute(order) for tensor in tensors]
    if first.numel() <= size or not all(tensor.is_contiguous() for tensor in permuted):
        yield tensors
    else:
        yield from zip(*(torch.split(tensor.view(-1), size) for tensor in permuted), strict=True)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself in float32 or float64, a float32 copy of a smaller float."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def magnitudes(weight: Tensor, smoothing: float) -> Tensor:
    """`sqrt(w^2 + r)` without a graph; `|w|` where r = 0."""
    return weight.mul(weight).add_(smoothing).sqrt_() if smoothing else weight.abs()


def moments(parameters: Sequence[Tensor], smoothing: float) -> Moments:
    """Number, mean and biased variance of `sqrt(w^2 + r)` of each (whole) tensor; all on one device.

    Example:
        >>> moments([torch.tensor([[3.0, -5.0]])], smoothing=0.0).variance
        tensor([1.], dtype=torch.float64)
    """
    device = local_part(parameters[0]).device
    owners: list[int] = []
    sizes: list[int] = []
    sums: list[Tensor] = []
    for position, parameter in enumerate(parameters):
        for (piece,) in pieces(local_part(parameter)):
            if piece.numel() == 0:
                continue
            magnitude = magnitudes(at_least_float32(piece), smoothing)
            shift = magnitude.mean()
            deviation = magnitude.sub_(shift)
            # the mean rounded to float32 is only a shift; the sum of deviations makes up for its error
            sums += [shift.double(), deviation.sum().double(), deviation.square_().sum().double()]
            owners.append(position)
            sizes.append(piece.numel())
    rows = torch.zeros(len(parameters), 3, dtype=torch.float64, device=device)
    if sums:
        part = torch.tensor(sizes, dtype=torch.float64, device=device)
        shifts, deviations, squares = torch.stack(sums).view(-1, 3).unbind(1)
        total = part * shifts + deviations
        columns = torch.stack([total, squares - deviations * deviations / part, total * total / part], dim=1)
        rows.index_add_(0, torch.tensor(owners, device=device), columns)
    rows = sum_over_shards(rows, parameters)
    count = torch.tensor([float(parameter.numel()) for parameter in parameters], dtype=torch.float64, device=device)
    total, within, between = rows.unbind(1)
    mean = total / count
    variance = ((within + between - total * mean) / count).clamp_(min=0)
    return Moments(count, mean, variance)


def add_gradients_(
    parameters: Sequence[Tensor], smoothing: float, mean: Tensor, constant: Tensor, slope: Tensor
) -> None:
    """Add `s * (constant + slope * (w~ - mean))` to `parameter.grad`; the last three have shape (tensors,)."""
    shifts = mean.float()
    # the float32 mean is exact as a shift: what it lacks goes into the constant
    constants = constant + slope * (shifts.double() - mean)
    slopes = slope
    for position, parameter in enumerate(parameters):
        assert parameter.grad is not None
        weights, gradients = local_part(parameter), local_part(parameter.grad)
        for weight, gradient in pieces(weights, gradients):
            wide, target = at_least_float32(weight), at_least_float32(gradient)
            magnitude = magnitudes(wide, smoothing)
            factor = magnitude.sub(shifts[position]).mul_(slopes[position]).add_(constants[position])
            if smoothing:
                target.addcdiv_(factor.mul_(wide), magnitude)
            else:
                target.addcmul_(factor, wide.sign())
            if target is not gradient:
                gradient.copy_(target)

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

PIECE = 1 << 18
"""Elements worked on at a time on the CPU: 1 MiB of float32, so that each pass after the first reads the cache."""


class Moments(NamedTuple):
    """Number, mean and biased variance of the magnitudes, per tensor; float64, each of shape (tensors,)."""

    number: Tensor
    mean: Tensor
    variance: Tensor


def pieces(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """The same stretches of several tensors of one shape, as views: flat ones of `size`, or the whole if they differ.

    Example:
        >>> [part.numel() for part, in pieces([torch.ones(3, 2)], size=4)]
        [4, 2]
    """
    first = tensors[0]
    if first.numel() > size:
        order = sorted(range(first.ndim), key=first.stride, reverse=True)
        permuted = [tensor.permute(order) for tensor in tensors]
        if all(tensor.is_contiguous() for tensor in permuted):
            yield from zip(*(torch.split(tensor.view(-1), size) for tensor in permuted), strict=True)
            return
    if first.numel() > 0:
        yield tuple(tensors)


class Batch(NamedTuple):
    """Pieces to be worked on together: the position of the tensor each belongs to, and the pieces themselves."""

    owners: list[int]
    parts: list[tuple[Tensor, ...]]


def batches(rows: Sequence[Sequence[Tensor]]) -> Iterator[Batch]:
    """Split each row of like-shaped tensors into pieces and gather them, `PIECE` elements at a time on the CPU.

    On an accelerator everything is one batch of whole tensors: there the number of kernels counts.
    """
    size = PIECE if rows[0][0].device.type == "cpu" else 1 << 62
    batch, filled = Batch([], []), 0
    for position, row in enumerate(rows):
        for part in pieces(row, size):
            batch.owners.append(position)
            batch.parts.append(part)
            filled += part[0].numel()
            if filled >= size:
                yield batch
                batch, filled = Batch([], []), 0
    if batch.parts:
        yield batch


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor itself in float32 or float64, a float32 copy of a smaller float."""
    return tensor if tensor.dtype in (torch.float32, torch.float64) else tensor.float()


def magnitudes(weights: list[Tensor], smoothing: Tensor | None) -> list[Tensor]:
    """`sqrt(w^2 + r)` of each, without a graph; `|w|` where r is None."""
    if smoothing is None:
        return list(torch._foreach_abs(weights))
    result = list(torch._foreach_mul(weights, weights))
    torch._foreach_add_(result, smoothing)
    torch._foreach_sqrt_(result)
    return result


def smoothing_tensor(smoothing: float, device: torch.device) -> Tensor | None:
    """r as a float64 scalar on the device (cheaper than a Python number in each call), None for 0."""
    return torch.full((), smoothing, dtype=torch.float64, device=device) if smoothing else None


def _sums(tensors: list[Tensor]) -> Tensor:
    return torch.stack([tensor.sum() for tensor in tensors]).double()


def _part_sums(magnitude: list[Tensor], number: Tensor, in_float64: bool) -> Tensor:
    """Per part: sum, squared deviations from the part's mean, sum^2 / number; overwrites `magnitude`."""
    total = torch.stack(torch._foreach_norm(magnitude, 1, dtype=torch.float64)) if in_float64 else _sums(magnitude)
    # A mean rounded to float32 serves as a shift; `left` is what the deviations from it still sum to.
    shift = (total / number).float()
    torch._foreach_sub_(magnitude, shift.unbind())
    left = total - number * shift if in_float64 else _sums(magnitude)
    squares = torch.stack(torch._foreach_norm(magnitude, 2)).double().square()
    total = number * shift + left
    return torch.stack([total, squares - left * left / number, total * total / number], dim=1)


def moments(parameters: Sequence[Tensor], smoothing: float) -> Moments:
    """Number, mean and biased variance of `sqrt(w^2 + r)` of each (whole) tensor; all on one device.

    Example:
        >>> moments([torch.tensor([[3.0, -5.0]])], smoothing=0.0).mean
        tensor([4.], dtype=torch.float64)
    """
    locals_ = [local_part(parameter) for parameter in parameters]
    device = locals_[0].device
    # Sums in float64 cost little on an accelerator; on the CPU two float32 sums are three times faster.
    in_float64 = device.type == "cuda"
    radius = smoothing_tensor(smoothing, device)
    rows = torch.zeros(len(parameters), 3, dtype=torch.float64, device=device)
    for owners, parts in batches([[local] for local in locals_]):
        magnitude = magnitudes([at_least_float32(weight) for (weight,) in parts], radius)
        number = torch.tensor([part.numel() for part in magnitude], dtype=torch.float64, device=device)
        rows.index_add_(0, torch.tensor(owners, device=device), _part_sums(magnitude, number, in_float64))
    total, within, between = sum_over_shards(rows, parameters).unbind(1)
    number = torch.tensor([parameter.numel() for parameter in parameters], dtype=torch.float64, device=device)
    mean = total / number
    return Moments(number, mean, ((within + between - total * mean) / number).clamp_(min=0))


def add_gradients_(
    parameters: Sequence[Tensor], smoothing: float, mean: Tensor, constant: Tensor, slope: Tensor
) -> None:
    """Add `s * (constant + slope * (w~ - mean))` to `parameter.grad`; the last three have shape (tensors,)."""
    shift = mean.float()
    # As in the sums, the rounded mean is an exact shift; what it lacks goes into the constant.
    constants = (constant + slope * (shift - mean)).unbind()
    slopes, shifts = slope.unbind(), shift.unbind()
    rows = [[local_part(parameter), local_part(gradient_of(parameter))] for parameter in parameters]
    radius = smoothing_tensor(smoothing, rows[0][0].device)
    for owners, parts in batches(rows):
        weights = [at_least_float32(weight) for weight, _ in parts]
        gradients = [gradient for _, gradient in parts]
        targets = [at_least_float32(gradient) for gradient in gradients]
        magnitude = magnitudes(weights, radius)
        factor = list(torch._foreach_sub(magnitude, [shifts[owner] for owner in owners]))
        torch._foreach_mul_(factor, [slopes[owner] for owner in owners])
        torch._foreach_add_(factor, [constants[owner] for owner in owners])
        if radius is None:
            torch._foreach_addcmul_(targets, factor, torch._foreach_sign(weights))
        else:
            torch._foreach_mul_(factor, weights)
            torch._foreach_addcdiv_(targets, factor, magnitude)
        write_back(targets, gradients)


def gradient_of(parameter: Tensor) -> Tensor:
    """The gradient; ValueError when it is not sharded as its parameter is."""
    gradient = parameter.grad
    assert gradient is not None
    if local_part(gradient).shape != local_part(parameter).shape:
        raise ValueError(
            f"the gradient of a parameter of shape {tuple(parameter.shape)} is laid out differently across ranks: "
            f"{getattr(parameter, 'placements', 'whole')} against {getattr(gradient, 'placements', 'whole')}"
        )
    return gradient


def write_back(targets: list[Tensor], gradients: list[Tensor]) -> None:
    """Round float32 working copies into the bf16 or fp16 gradients they stand for."""
    for target, gradient in zip(targets, gradients, strict=True):
        if target is not gradient:
            gradient.copy_(target)

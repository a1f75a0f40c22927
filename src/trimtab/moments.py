"""Number, sum and squared deviations of many tensors: what every mean, variance and norm here is made of.

Two cheap reductions per tensor give the three numbers; those of parts (shards on other ranks, other tensors) are joined by

    M2 = sum M2_p + sum S_p^2 / n_p - S^2 / n,    S = sum S_p,  n = sum n_p,

so that a variance over several tensors is exact and never an average of variances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import local_part, sum_over_shards

PIECE = 1 << 18
"""Elements summed at a time in float32 on a CPU: bounds the rounding error whatever the size of the tensor."""
LARGE_MEAN = 0.9
"""Share of the sum of squares that is the mean's, above which the deviations are summed in a second pass on a CPU."""
SAFE_SQUARES = (1e-25, 1e30)
"""Float32 sums of squares outside of this range may have lost terms by underflow or overflow and are taken again in float64."""


class Moments(NamedTuple):
    """Of each tensor the number of entries, their sum and their squared deviations from the mean; float64, shape (tensors,)."""

    number: Tensor
    total: Tensor
    squares: Tensor

    @property
    def mean(self) -> Tensor:
        """`S / n`; NaN for an empty tensor."""
        return self.total / self.number

    @property
    def variance(self) -> Tensor:
        """Biased: `M2 / n`."""
        return self.squares / self.number

    @property
    def std(self) -> Tensor:
        """Square root of the biased variance."""
        return self.variance.sqrt()

    @property
    def norm(self) -> Tensor:
        """`sqrt(sum x^2)`."""
        return (self.squares + torch.where(self.number > 0, self.total * self.mean, 0)).sqrt()


def pooled(moments: Moments) -> Moments:
    """The moments of all tensors together, as one entry; exact.

    Example:
        >>> together = pooled(moments([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]))
        >>> together.mean.item(), together.variance.item()
        (3.0, 3.5)
    """
    number, total = moments.number.sum(0, keepdim=True), moments.total.sum(0, keepdim=True)
    between = torch.where(moments.number > 0, moments.total * moments.mean, 0).sum(0, keepdim=True)
    squares = moments.squares.sum(0, keepdim=True) + between - torch.where(number > 0, total * total / number, 0)
    return Moments(number, total, squares.clamp_(min=0))


@torch.no_grad()
def moments(tensors: Sequence[Tensor], parameters: Sequence[Tensor] | None = None) -> Moments:
    """Moments of each tensor, in float64, whatever its dtype; no synchronisation with an accelerator.

    Sums run in float32 over pieces on a CPU (relative error about 1e-6; float64 tensors in float64) and in float64
    elsewhere. A mean far above the standard deviation does not cancel: on a CPU such tensors are summed again around
    their mean.

    Args:
        tensors: real floating-point tensors of any shape and memory layout, on one device; DTensors count with their local
            part.
        parameters: where the tensors are parts: the (sharded) parameters they belong to, so that the result is of the whole
            tensors; one collective.

    Returns:
        `Moments`, each of shape (len(tensors),). A tensor that holds NaN or infinity has NaN moments.

    Raises:
        TypeError: a tensor is not a real floating-point one.

    Example:
        >>> found = moments([torch.tensor([[1.0, 3.0]]), torch.tensor([5.0])])
        >>> found.mean.tolist(), found.variance.tolist()
        ([2.0, 5.0], [1.0, 0.0])
    """
    flats = [flat_part(local_part(tensor), position) for position, tensor in enumerate(tensors)]
    if not flats:
        empty = torch.zeros(0, dtype=torch.float64)
        return Moments(empty, empty, empty)
    device = flats[0].device
    sizes = [flat.numel() for flat in flats]
    number = torch.tensor(sizes, dtype=torch.float64, device=device)
    total, squares = _sums_on_cpu(flats, number) if device.type == "cpu" else _sums(flats, number)
    found = Moments(number, total, squares)
    return found if parameters is None else from_terms(sum_over_shards(terms(found), parameters))


def _of_mean(number: Tensor, total: Tensor) -> Tensor:
    """`S^2 / n`, 0 for nothing."""
    return torch.where(number > 0, total * (total / number), 0)


def terms(local: Moments) -> Tensor:
    """`n, S, M2, S^2 / n` of each part, shape (parts, 4): what is added up over the parts of one tensor.

    Example:
        >>> halves = terms(moments([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0])]))
        >>> from_terms(halves.sum(0, keepdim=True)).variance.item()
        3.5
    """
    return torch.stack([*local, _of_mean(local.number, local.total)], 1)


def from_terms(rows: Tensor) -> Moments:
    """The moments of whole tensors from the added `terms` of their parts, shape (tensors, 4)."""
    number, total, squares, between = rows.unbind(1)
    return Moments(number, total, (squares + between - _of_mean(number, total)).clamp(min=0))


def flat_part(tensor: Tensor, position: int) -> Tensor:
    """One dimension, in whatever order lies nearest in memory; float32 or float64.

    Raises:
        TypeError: not a dense real floating-point tensor; the message names `position`.
    """
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise TypeError(
            f"tensor {position} must be a dense real floating-point one, got {tensor.dtype}, {tensor.layout}"
        )
    if tensor.dtype == torch.float32 and tensor.is_contiguous():  # most of them: as little as can be
        return tensor.view(-1)
    if not tensor.is_contiguous():
        tensor = tensor.permute(sorted(range(tensor.ndim), key=tensor.stride, reverse=True))
    flat = tensor.detach().reshape(-1)
    return flat if flat.dtype in (torch.float32, torch.float64) else flat.float()


def _sums_on_cpu(flats: list[Tensor], number: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and squared deviations by a sum and a dot product per piece, the fastest reductions that are accurate enough."""
    pieces, owners = flats, []
    if any(flat.numel() > PIECE for flat in flats):
        cut = [torch.split(flat, PIECE) for flat in flats]
        pieces = [piece for parts in cut for piece in parts]
        owners = [owner for owner, parts in enumerate(cut) for _ in parts]
    rows = torch.stack(
        [torch.stack([piece.sum() for piece in pieces]), torch.stack([piece.dot(piece) for piece in pieces])]
    ).double()
    if owners:
        rows = torch.zeros(2, len(flats), dtype=torch.float64).index_add_(1, torch.tensor(owners), rows)
    total, second = rows.unbind()
    of_mean = _of_mean(number, total)
    squares = (second - of_mean).clamp_(min=0)
    low, high = SAFE_SQUARES
    doubtful = (of_mean > LARGE_MEAN * second) | (second < low) | (second > high)
    for owner in (doubtful & (number > 0)).nonzero().flatten().tolist():
        flat = flats[owner]
        deviations = flat.double() - total[owner] / number[owner]
        left = deviations.sum()
        total[owner] += left
        squares[owner] = deviations.dot(deviations) - left * left / number[owner]
    return total, squares


def _sums(flats: list[Tensor], number: Tensor) -> tuple[Tensor, Tensor]:
    """The same in float64 by few kernels and without looking at the values."""
    total = torch.stack([flat.sum(dtype=torch.float64) for flat in flats])
    shifted = torch._foreach_sub([flat.double() for flat in flats], list((total / number).unbind()))
    return total, torch.stack(torch._foreach_norm(shifted, 2)).square()

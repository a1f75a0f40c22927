"""Number, sum and squared deviations of many tensors: what every mean and variance here is made of.

All of them are within 1e-6 of float64, whatever the size of the tensor, the scale of its values and the kernel that sums
(`trimtab.tensors.chunks`). Parts (shards on other ranks, other tensors) are joined by

    M2 = sum M2_p + sum n_p (m_p - m)^2 = sum M2_p + sum S_p^2 / n_p - S^2 / n,    S = sum S_p,  n = sum n_p,

so that a variance over several tensors is never an average of variances. Squares of float64 tensors are taken as they are
(range 1e-154 to 1e154).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import is_sharded, local_part, sum_over_shards
from trimtab.tensors.chunks import layout_of
from trimtab.tensors.passes import by_kind, flat_part, working_dtype


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
    away = torch.where(moments.number > 0, moments.mean - total / number, 0)
    return Moments(number, total, (moments.squares + moments.number * away.square()).sum(0, keepdim=True))


@torch.no_grad()
def moments(tensors: Sequence[Tensor], parameters: Sequence[Tensor] | None = None) -> Moments:
    """Moments of each tensor, in float64, whatever its dtype; no synchronisation with an accelerator.

    Args:
        tensors: real floating-point tensors of any shape, memory layout and device; DTensors count with their local part.
        parameters: where the tensors are parts: the (sharded) parameters they belong to, so that the result is of the whole
            tensors; one collective.

    Returns:
        `Moments`, each of shape (len(tensors),), on the first tensor's device. A tensor that holds NaN or infinity has NaN
        moments.

    Raises:
        TypeError: a tensor is not a real floating-point one.

    Example:
        >>> found = moments([torch.tensor([[1.0, 3.0]]), torch.tensor([5.0])])
        >>> found.mean.tolist(), found.variance.tolist()
        ([2.0, 5.0], [1.0, 0.0])
    """
    flats = [
        flat_part(
            tensor if type(tensor) is Tensor else local_part(tensor), position
        )  # the first is the usual case, and quick
        for position, tensor in enumerate(tensors)
    ]
    if not flats:
        empty = torch.zeros(0, dtype=torch.float64)
        return Moments(empty, empty, empty)
    kinds = by_kind(flats)
    rows = [_of_kind([flats[position] for position in kind]) for kind in kinds]
    found = rows[0]
    if len(kinds) > 1:
        device = flats[0].device
        order = torch.tensor([position for kind in kinds for position in kind], device=device).argsort()
        found = torch.cat([row.to(device) for row in rows], 1)[:, order]
    local = Moments(*found.unbind())
    return local if parameters is None else over_shards(local, parameters)


def _of_kind(flats: Sequence[Tensor]) -> Tensor:
    chunks = layout_of(flats, working_dtype(flats[0]))
    return torch.cat([chunks.elements.unsqueeze(0), chunks.moments(flats)])


def over_shards(local: Moments, parameters: Sequence[Tensor]) -> Moments:
    """The moments of whole tensors where `local` are those of the parts on this rank; one small collective."""
    if not any(type(parameter) is not Tensor and is_sharded(parameter) for parameter in parameters):
        return local
    return from_terms(sum_over_shards(terms(local), parameters))


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

"""Number, sum and squared deviations of many tensors: what every mean, variance and norm here is made of.

All of them are within 1e-6 of float64, whatever the size of the tensor, the scale of its values and the kernel that sums:

* float64 sums over pieces of bounded size, around each piece's own mean: squares neither overflow nor vanish, nothing cancels;
* on a CPU first float32 sums over `CHUNK` elements, joined in float64, which are several times faster; where they lost terms,
  or where the mean is not small beside the deviation, the tensor is summed again by the first way.

Parts (pieces, shards on other ranks, other tensors) are joined by

    M2 = sum M2_p + sum n_p (m_p - m)^2 = sum M2_p + sum S_p^2 / n_p - S^2 / n,    S = sum S_p,  n = sum n_p,

so that a variance over several tensors is never an average of variances. Squares of float64 tensors are taken as they are
(range 1e-154 to 1e154), but for `joint_norm`, which scales them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from trimtab.collectives import is_sharded, local_part, max_over_shards, sum_over_shards

PIECE_ON_CPU = 1 << 16
"""Elements widened together on a CPU: 512 KiB of float64, so that the passes over them read the cache."""
PIECE_ON_ACCELERATOR = 1 << 24
"""The same elsewhere, where few large kernels are best: 128 MiB."""
CHUNK = 128
"""Elements summed together in float32 [ours]: no order of summation is then off by more than 5e-7."""
SMALL_MEAN = 0.25
"""Share of the sum of squares that is the mean's, up to which the difference of the two is taken [ours]."""
LEAST_SQUARES = 1e-20
"""Sums of squares below this may have lost terms to float32's range."""
LONG = 1 << 14
"""Elements of a flat tensor from which float32 chunks are faster than widening it."""


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
    found = stretch_moments(flats)
    return found if parameters is None else over_shards(found, parameters)


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


def piece_limit(device: torch.device) -> int:
    """Elements widened together on `device`."""
    return PIECE_ON_CPU if device.type == "cpu" else PIECE_ON_ACCELERATOR


def _cut(tensor: Tensor, limit: int) -> Iterator[Tensor]:
    """Views of at most `limit` elements that together are the tensor."""
    if tensor.numel() <= limit:
        yield tensor
    elif tensor.shape[0] == 1:
        yield from _cut(tensor[0], limit)
    else:
        for part in torch.split(tensor, max(1, limit * tensor.shape[0] // tensor.numel())):
            yield from _cut(part, limit)


def _stretches(flats: Sequence[Tensor], limit: int) -> Iterator[tuple[list[int], list[Tensor]]]:
    """The tensors cut and gathered, at most `limit` elements at a time, with the position that each part is from."""
    owners: list[int] = []
    parts: list[Tensor] = []
    filled = 0
    for owner, flat in enumerate(flats):
        size = flat.numel()
        for part in (flat,) if size <= limit else torch.split(flat, limit):
            size = part.numel()
            if parts and filled + size > limit:
                yield owners, parts
                owners, parts, filled = [], [], 0
            if size:
                owners.append(owner)
                parts.append(part)
                filled += size
    if parts:
        yield owners, parts


def stretch_moments(flats: Sequence[Tensor]) -> Moments:
    """Moments of flat tensors of one device.

    Example:
        >>> stretch_moments([torch.tensor([1.0, 3.0]), torch.tensor([1e30])]).squares
        tensor([2., 0.], dtype=torch.float64)
    """
    rows = torch.zeros(3, len(flats), dtype=torch.float64, device=flats[0].device)
    long = [at for at, flat in enumerate(flats) if flat.numel() >= LONG and _by_chunks(flat.unsqueeze(0))]
    doubtful: set[int] = set()
    if long:
        found, sound = zip(*(_moments_by_chunks(flats[at].unsqueeze(0)) for at in long), strict=True)
        rows[:, torch.tensor(long)] = torch.cat(found)[:, :3].T
        doubtful = {long[at] for at in torch.cat(sound).flatten().logical_not_().nonzero().flatten().tolist()}
    certain = set(long) - doubtful
    short = [at for at, flat in enumerate(flats) if flat.numel() and at not in certain]
    if short:
        wide = torch.stack(_wide_moments([flats[at] for at in short]))
        rows[:, torch.tensor(short, device=rows.device)] = wide
    return Moments(*rows.unbind())


def _wide_moments(flats: Sequence[Tensor]) -> Moments:
    """The same in float64, many small ones by few calls."""
    device = flats[0].device
    limit = min(piece_limit(device), sum(flat.numel() for flat in flats))
    buffer = torch.empty(limit, dtype=torch.float64, device=device)
    owners: list[int] = []
    sizes: list[int] = []
    found: list[Tensor] = []
    for of, parts in _stretches(flats, limit):
        lengths = [part.numel() for part in parts]
        views = buffer[: sum(lengths)].split_with_sizes(lengths)
        torch._foreach_copy_(views, parts)
        total = torch.stack([view.sum() for view in views])
        torch._foreach_sub_(views, (total / torch.tensor(lengths, dtype=torch.float64, device=device)).unbind())
        found.append(torch.stack([total, torch.stack([view.dot(view) for view in views])]))
        owners += of
        sizes += lengths
    number = torch.tensor(sizes, dtype=torch.float64, device=device)
    total, squares = torch.cat(found, 1)
    return joined(Moments(number, total, squares), owners, len(flats))


def joined(parts: Moments, owners: Sequence[int], tensors: int) -> Moments:
    """Moments of tensors from those of their parts: `M2 = sum M2_p + n_p (m_p - m)^2`, which cancels nothing.

    Example:
        >>> found = moments([torch.tensor([1.0, 2.0]), torch.tensor([3.0, 6.0]), torch.tensor([5.0])])
        >>> joined(found, [0, 0, 1], 2).squares
        tensor([14.,  0.], dtype=torch.float64)
    """
    if len(owners) == tensors:  # each part is a tensor, in order
        return parts
    index = torch.tensor(owners, device=parts.number.device)

    def added(values: Tensor) -> Tensor:
        return values.new_zeros(tensors).index_add_(0, index, values)

    number, total = added(parts.number), added(parts.total)
    away = torch.where(parts.number > 0, parts.mean - (total / number)[index], 0)
    return Moments(number, total, added(parts.squares + parts.number * away.square_()))


def over_shards(local: Moments, parameters: Sequence[Tensor]) -> Moments:
    """The moments of whole tensors where `local` are those of the parts on this rank; one small collective."""
    if not any(is_sharded(parameter) for parameter in parameters):
        return local
    return from_terms(sum_over_shards(terms(local), parameters))


def unit_sums(rows: Tensor) -> Tensor:
    """`sum x` of every unit, shape (units, 1), float64.

    Args:
        rows: shape (units, ...), any real floating-point dtype and layout; read only.

    Example:
        >>> unit_sums(torch.tensor([[1.0, 2.0], [3e38, 3e38]]))[1]
        tensor([6.0000e+38], dtype=torch.float64)
    """
    if not _by_chunks(rows):
        return _over_units(rows, _sums)
    total = _total(rows)
    return _again(rows, total, ~total.isfinite(), _sums)


def unit_squares(rows: Tensor) -> Tensor:
    """`sum x^2` of every unit, shape (units, 1), float64; arguments as those of `unit_sums`.

    Example:
        >>> unit_squares(torch.tensor([[1.0, 2.0], [3e30, 4e30]]))[1].sqrt()
        tensor([5.0000e+30], dtype=torch.float64)
    """
    if not _by_chunks(rows):
        return _over_units(rows, _squares)
    second = _second(rows)
    return _again(rows, second, ~((second > LEAST_SQUARES) & second.isfinite()), _squares)


def unit_moments(rows: Tensor) -> Tensor:
    """`terms` of every unit, shape (units, 4), float64; arguments as those of `unit_sums`.

    Example:
        >>> unit_moments(torch.tensor([[1.0, 3.0]]))
        tensor([[2., 4., 2., 8.]], dtype=torch.float64)
    """
    if not _by_chunks(rows):
        return _over_units(rows, _moment_terms)
    found, sound = _moments_by_chunks(rows)
    return _again(rows, found, ~sound, _moment_terms)


def _moments_by_chunks(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`terms` of every unit, and whether they are to be trusted, shape (units, 1)."""
    second, total = _second(rows), _total(rows)
    number = torch.full_like(total, rows.shape[1])
    of_mean = total * (total / number)
    found = torch.cat([number, total, second - of_mean, of_mean], 1)
    return found, (second > LEAST_SQUARES) & second.isfinite() & (of_mean <= SMALL_MEAN * second)


def _by_chunks(rows: Tensor) -> bool:
    """Whether float32 sums over chunks serve, and whether what they lost may be looked at."""
    return rows.device.type == "cpu" and rows.dtype == torch.float32 and rows.ndim == 2 and rows.numel() > 0


def _total(rows: Tensor) -> Tensor:
    """`sum x` of each row; torch adds pairwise, so a row of some thousand elements needs no chunks."""
    if rows.shape[1] <= 32 * CHUNK:
        return rows.sum(1, keepdim=True).double()
    whole = rows.shape[1] // CHUNK * CHUNK
    chunks = torch.unflatten(rows[:, :whole], 1, (-1, CHUNK)).sum(2).sum(1, keepdim=True, dtype=torch.float64)
    total: Tensor = chunks + rows[:, whole:].sum(1, keepdim=True)
    return total


def _second(rows: Tensor) -> Tensor:
    """`sum x^2` of each row."""
    if rows.shape[1] <= 2 * CHUNK:
        second: Tensor = torch.linalg.vector_norm(rows, 2, 1, keepdim=True).double().square_()
        return second
    whole = rows.shape[1] // CHUNK * CHUNK
    norms = torch.linalg.vector_norm(torch.unflatten(rows[:, :whole], 1, (-1, CHUNK)), 2, 2)
    second = norms.double().square_().sum(1, keepdim=True)
    second += torch.linalg.vector_norm(rows[:, whole:], 2, 1, keepdim=True).double().square_()
    return second


def _again(rows: Tensor, found: Tensor, doubtful: Tensor, reduction: Reduction) -> Tensor:
    """`found` with the doubtful units summed in float64."""
    units = doubtful.squeeze(1).nonzero().squeeze(1)
    if len(units) == len(rows):
        return _over_units(rows, reduction)
    if len(units):
        found[units] = _over_units(rows[units], reduction)
    return found


def _over_units(rows: Tensor, reduction: Reduction) -> Tensor:
    """`reduction` of every unit in float64, bounded extra memory; shape (units, columns)."""
    units, number = rows.shape[0], rows.numel()
    if number == 0:
        return reduction(torch.zeros(units, 0, dtype=torch.float64, device=rows.device)).nan_to_num_(0)
    elements, limit = number // units, piece_limit(rows.device)
    buffer = torch.empty(min(limit, number), dtype=torch.float64, device=rows.device)

    def reduced(part: Tensor, here: int) -> Tensor:
        return reduction(buffer[: part.numel()].view(part.shape).copy_(part).view(here, -1))

    if elements <= limit:
        return torch.cat([reduced(part, part.shape[0]) for part in torch.split(rows, limit // elements)])
    return torch.cat(
        [torch.stack([reduced(part, 1) for part in _cut(unit, limit)]).sum(0) for unit in torch.split(rows, 1)]
    )


Reduction = Callable[[Tensor], Tensor]
"""Of float64 rows, shape (units, elements), which it may use up, what is added over the parts of a unit: (units, columns)."""


def _sums(rows: Tensor) -> Tensor:
    return rows.sum(1, keepdim=True)


def _squares(rows: Tensor) -> Tensor:
    return rows.square_().sum(1, keepdim=True)


def _moment_terms(rows: Tensor) -> Tensor:
    total = rows.sum(1, keepdim=True)
    mean = total / rows.shape[1]
    return torch.cat([torch.full_like(total, rows.shape[1]), total, _squares(rows.sub_(mean)), total * mean], 1)


@torch.no_grad()
def joint_norm(tensors: Sequence[Tensor], owners: Sequence[Tensor] | None = None, order: float = 2.0) -> Tensor:
    """The p-norm of all tensors together; float64, shape (), on the first's device; one small collective at most.

    `m * (sum |x / m|^p)^(1/p)` with m the greatest magnitude, where powers might leave float64's range; m = 1 for p of 1 and
    2 of narrower tensors, whose squares cannot.

    Args:
        tensors: real tensors or the local parts of sharded ones; 0 for none.
        owners: the (sharded) tensors that they are parts of.
        order: p, above 0, or `math.inf`.

    Example:
        >>> joint_norm([torch.tensor([3e30]), torch.tensor([4e30])])
        tensor(5.0000e+30, dtype=torch.float64)
    """
    if not tensors:
        return torch.zeros((), dtype=torch.float64)
    device = tensors[0].device
    owners = tensors if owners is None else owners
    largest: Tensor | None = None
    if order == math.inf or order not in (1, 2) or any(tensor.dtype == torch.float64 for tensor in tensors):
        each = [tensor.abs().amax() if tensor.numel() else tensor.new_zeros(()) for tensor in tensors]
        # NaN is no number that a collective may compare: it becomes infinity, and no norm either
        column = torch.stack([value.to(device, torch.float64) for value in each]).nan_to_num(math.inf, math.inf)
        largest = max_over_shards(column.unsqueeze(1), owners).amax()
        if order == math.inf:
            return largest
    # one row for all that is whole here, one for each shard
    owned = [at for at, owner in enumerate(owners) if is_sharded(owner)]
    whole = [at for at in range(len(tensors)) if at not in set(owned)]
    groups = [group for group in (whole, *([at] for at in owned)) if group]
    powers = torch.zeros(len(groups), 1, dtype=torch.float64, device=device)
    for row, group in enumerate(groups):
        for found in _powers([tensors[at] for at in group], largest, order):
            powers[row] += found.to(device)
    joint = sum_over_shards(powers, [owners[group[0]] for group in groups]).sum().pow(1 / order)
    return joint if largest is None else joint * largest


def _powers(tensors: Sequence[Tensor], largest: Tensor | None, order: float) -> Iterator[Tensor]:
    """`sum |x / m|^p` piece by piece, shape (1,)."""
    kinds: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for position, tensor in enumerate(tensors):
        kinds.setdefault((tensor.device, tensor.dtype), []).append(flat_part(tensor, position))
    for flats in kinds.values():
        for _, parts in _stretches(flats, 4 * piece_limit(flats[0].device)):
            part = parts[0] if len(parts) == 1 else torch.cat(parts)
            if largest is None and order == 2:
                yield unit_squares(part.unsqueeze(0)).squeeze(1)
                continue
            wide = part.double()
            if largest is not None:
                wide = wide / torch.where(largest == 0, 1, largest).to(wide.device)
            yield torch.linalg.vector_norm(wide, order).pow(order).unsqueeze(0)

"""Sums and squares of units (rows), within 1e-6 of float64 at any scale; joined for many tensors of one shape.

On a CPU float32 sums run over short stretches and are joined in float64; units where float32's range may have spoilt them are
summed again in float64, as all are elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from trimtab.tensors.chunks import LEAST_SQUARES, SMALL_MEAN

PIECE_ON_CPU = 1 << 16
"""Elements widened together on a CPU: 512 KiB of float64, so that the passes over them read the cache."""
PIECE_ON_ACCELERATOR = 1 << 24
"""The same elsewhere, where few large kernels are best: 128 MiB."""
CACHED = 1 << 17
"""Elements that are read twice in a row on a CPU, so that the second reading is of its cache: 512 KiB of float32."""
STRETCH = 640
"""Elements whose squares are added in float32 [ours]: at worst, all of them equal, 1.2e-6 off, their norm half of that."""
PAIRWISE = 4096
"""Elements that torch's pairwise float32 sum takes within 5e-7."""

LEAST_NORM = math.sqrt(LEAST_SQUARES[torch.float32])
"""Norms up to this may have lost terms to the range of float32."""

Reduction = Callable[[Tensor], Tensor]
"""Of float64 rows, shape (units, elements), which it may use up, what is added over the parts of a unit: (units, columns)."""


def unit_sums(rows: Sequence[Tensor]) -> Tensor:
    """`sum x` of every unit, shape (all units, 1), float64.

    Args:
        rows: of one shape (units, ...), dtype and layout; any real floating-point dtype; read only.

    Example:
        >>> unit_sums([torch.tensor([[1.0, 2.0], [3e38, 3e38]])])[1]
        tensor([6.0000e+38], dtype=torch.float64)
    """
    if not _serves(rows):
        return torch.cat([_over_units(part, _sums) for part in rows])
    short = [_stretches(part, PAIRWISE, lambda part: part.sum(-1, keepdim=part.ndim == 2)) for part in rows]
    total = torch.cat(short).double()
    total = total if total.shape[1] == 1 else total.sum(1, keepdim=True)
    return _again(rows, total, total.isfinite(), lambda part: _over_units(part, _sums))


def unit_squares(rows: Sequence[Tensor]) -> Tensor:
    """`sum x^2` of every unit, shape (all units, 1), float64; arguments as those of `unit_sums`.

    Example:
        >>> unit_squares([torch.tensor([[1.0, 2.0], [3e30, 4e30]])])[1].sqrt()
        tensor([5.0000e+30], dtype=torch.float64)
    """
    return unit_norms(rows).square_() if _serves(rows) else torch.cat([_over_units(part, _squares) for part in rows])


def unit_norms(rows: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of every unit, shape (all units, 1), float64; arguments as those of `unit_sums`.

    Example:
        >>> unit_norms([torch.tensor([[3e30, 4e30]])])
        tensor([[5.0000e+30]], dtype=torch.float64)
    """
    if not _serves(rows):
        return unit_squares(rows).sqrt_()
    if rows[0].shape[1] <= STRETCH:
        short = [_norm(part, 2, 1, keepdim=True) for part in rows]
    else:
        short = [_stretches(part, STRETCH, lambda part: _norm(part, 2, -1, part.ndim == 2)) for part in rows]
    joined = short[0] if len(short) == 1 else torch.cat(short)
    found = joined.double() if joined.shape[1] == 1 else _norm(joined, 2, 1, keepdim=True, dtype=torch.float64)
    least, most = joined.aminmax()
    if float(least) > LEAST_NORM and float(most) < math.inf:  # the usual case; NaN is not
        return found
    return _again(
        rows, found, (found > LEAST_NORM) & found.isfinite(), lambda part: _over_units(part, _squares).sqrt_()
    )


def unit_deviations(rows: Sequence[Tensor]) -> Tensor:
    """`sum x` and `sum (x - mean)^2` of every unit, shape (all units, 2), float64; arguments as those of `unit_sums`.

    Both in one reading where float32 sums serve: the squares' sum less that of the mean, where the mean has at most a quarter
    of it; other units are summed again in float64 around their mean.

    Example:
        >>> unit_deviations([torch.tensor([[1.0, 3.0], [1e8, 1e8 + 8]])])
        tensor([[4.0000e+00, 2.0000e+00],
                [2.0000e+08, 3.2000e+01]], dtype=torch.float64)
    """
    if not _serves(rows):
        return torch.cat([_deviations(part) for part in rows])
    elements, sums, norms = rows[0].shape[1], [], []
    whole = elements <= STRETCH
    length = elements if whole else _stretch(elements, STRETCH)
    pieces = rows
    if rows[0].numel() > CACHED:
        pieces = [piece for part in rows for piece in torch.split(part, max(1, CACHED // elements))]
    for piece in pieces:
        if whole:
            sums.append(piece.sum(1, keepdim=True))
            norms.append(_norm(piece, 2, 1, keepdim=True))
        elif elements % length == 0 and piece.is_contiguous():
            sums.append(piece.view(-1, length).sum(1).view(len(piece), -1))
            norms.append(_norm(piece.view(-1, length), 2, 1).view(len(piece), -1))
        else:
            sums.append(_stretches(piece, PAIRWISE, lambda part: part.sum(-1, keepdim=part.ndim == 2)))
            norms.append(_stretches(piece, STRETCH, lambda part: _norm(part, 2, -1, part.ndim == 2)))
    total, second = torch.cat(sums).double(), torch.cat(norms).double().square_()
    if not whole:
        total, second = total.sum(1, keepdim=True), second.sum(1, keepdim=True)
    of_mean = total.square().div_(elements)
    sound = (second > LEAST_SQUARES[torch.float32]) & (of_mean <= SMALL_MEAN[torch.float32] * second)
    return _again(rows, torch.cat([total, second.sub_(of_mean)], 1), sound & second.isfinite(), _deviations)


def _deviations(rows: Tensor) -> Tensor:
    number, total, within, between = unit_moments(rows).unbind(1)
    return torch.stack([total, (within + between - total * total / number).clamp_(min=0)], 1)


def unit_moments(rows: Tensor) -> Tensor:
    """`trimtab.tensors.moments.terms` of every unit of one tensor, shape (units, 4), float64.

    Example:
        >>> unit_moments(torch.tensor([[1.0, 3.0]]))
        tensor([[2., 4., 2., 8.]], dtype=torch.float64)
    """
    return _over_units(rows, _moment_terms)


def piece_limit(device: torch.device) -> int:
    """Elements widened together on `device`."""
    return PIECE_ON_CPU if device.type == "cpu" else PIECE_ON_ACCELERATOR


_norm = torch.linalg.vector_norm


def _serves(rows: Sequence[Tensor]) -> bool:
    """Whether float32 sums over stretches serve, and whether what they lost may be looked at."""
    first = rows[0]
    return first.device.type == "cpu" and first.dtype == torch.float32 and first.ndim == 2 and first.numel() > 0


@lru_cache
def _stretch(elements: int, most: int) -> int:
    """The longest stretch of at most `most` elements that leaves no rest; `most` where only a short one would."""
    return next((length for length in range(most, most // 4, -1) if elements % length == 0), most)


def _stretches(rows: Tensor, most: int, reduction: Callable[[Tensor], Tensor]) -> Tensor:
    """`reduction` over equal stretches of at most `most` elements, and of the rest of each row; shape (units, stretches)."""
    elements = rows.shape[1]
    if elements <= most:
        return reduction(rows)
    length = _stretch(elements, most)
    whole = elements // length * length
    found = reduction(torch.unflatten(rows[:, :whole], 1, (-1, length)))
    return found if whole == elements else torch.cat([found, reduction(rows[:, whole:])], 1)


def _again(rows: Sequence[Tensor], found: Tensor, sound: Tensor, carefully: Callable[[Tensor], Tensor]) -> Tensor:
    """`found` with what `carefully` gives of the doubtful units."""
    if bool(sound.all()):
        return found
    per_part = rows[0].shape[0]
    for part, column, good in zip(
        rows, torch.split(found, per_part), torch.split(sound.squeeze(1), per_part), strict=True
    ):
        units = good.logical_not().nonzero().squeeze(1)
        if len(units) == per_part:
            column.copy_(carefully(part))
        elif len(units):
            column[units] = carefully(part[units])
    return found


def _cut(tensor: Tensor, limit: int) -> Iterator[Tensor]:
    """Views of at most `limit` elements that together are the tensor."""
    if tensor.numel() <= limit:
        yield tensor
    elif tensor.shape[0] == 1:
        yield from _cut(tensor[0], limit)
    else:
        for part in torch.split(tensor, max(1, limit * tensor.shape[0] // tensor.numel())):
            yield from _cut(part, limit)


def _over_units(rows: Tensor, reduction: Reduction) -> Tensor:
    """`reduction` of every unit in float64, bounded extra memory; shape (units, columns)."""
    units, number = rows.shape[0], rows.numel()
    if number == 0:
        return reduction(torch.zeros(units, 0, dtype=torch.float64, device=rows.device)).nan_to_num_(0)
    elements = number // units
    limit = piece_limit(rows.device)
    buffer = torch.empty(min(limit, number), dtype=torch.float64, device=rows.device)

    def reduced(part: Tensor, here: int) -> Tensor:
        return reduction(buffer[: part.numel()].view(part.shape).copy_(part).view(here, -1))

    if elements <= limit:
        return torch.cat([reduced(part, part.shape[0]) for part in torch.split(rows, limit // elements)])
    return torch.cat(
        [torch.stack([reduced(part, 1) for part in _cut(unit, limit)]).sum(0) for unit in torch.split(rows, 1)]
    )


def _sums(rows: Tensor) -> Tensor:
    return rows.sum(1, keepdim=True)


def _squares(rows: Tensor) -> Tensor:
    return rows.square_().sum(1, keepdim=True)


def _moment_terms(rows: Tensor) -> Tensor:
    total = rows.sum(1, keepdim=True)
    mean = total / rows.shape[1]
    return torch.cat([torch.full_like(total, rows.shape[1]), total, _squares(rows.sub_(mean)), total * mean], 1)

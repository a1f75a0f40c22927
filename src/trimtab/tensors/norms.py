"""The norm of many tensors together; within 1e-6 of float64 at any scale, size and order."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from trimtab.collectives import is_sharded, max_over_shards, sum_over_shards
from trimtab.tensors.blocks import blocks
from trimtab.tensors.chunks import BATCH_ON_ACCELERATOR, LEAST_SQUARES, SQUARED
from trimtab.tensors.passes import by_kind, flat_part, pieces, working_dtype
from trimtab.tensors.unit_sums import unit_squares
from trimtab.tensors.units import Item

GATHERED = 1 << 17
"""Elements copied together on a CPU: 512 KiB of float32."""
ALONE = 1 << 14
"""Elements from which a call of its own costs less than a copy."""


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
    if order not in (1, 2) or any(tensor.dtype == torch.float64 for tensor in tensors):
        each = [tensor.abs().amax() if tensor.numel() else tensor.new_zeros(()) for tensor in tensors]
        # NaN is no number that a collective may compare: it becomes infinity, and no norm either
        column = torch.stack([value.to(device, torch.float64) for value in each]).nan_to_num(math.inf, math.inf)
        largest = max_over_shards(column.unsqueeze(1), owners).amax()
        if order == math.inf:
            return largest
    # one row for all that is whole here, one for each shard
    owned = [at for at, owner in enumerate(owners) if type(owner) is not Tensor and is_sharded(owner)]
    if owned:
        shards = set(owned)
        whole = [at for at in range(len(tensors)) if at not in shards]
        groups = [group for group in (whole, *([at] for at in owned)) if group]
        powers = torch.stack([_power([tensors[at] for at in group], largest, order).to(device) for group in groups])
        joint = sum_over_shards(powers.unsqueeze(1), [owners[group[0]] for group in groups]).sum()
    else:
        joint = _power(tensors, largest, order).to(device)
    joint = joint.sqrt() if order == 2 else joint.pow(1 / order)
    return joint if largest is None else joint * largest


@torch.no_grad()
def each_norm(tensors: Sequence[Tensor], owners: Sequence[Tensor] | None = None) -> Tensor:
    """The 2-norm of each tensor; float64, shape (tensors,), on the first's device; one small collective at most.

    Args:
        tensors: real tensors or the local parts of sharded ones, at least one.
        owners: the (sharded) tensors that they are parts of.

    Example:
        >>> each_norm([torch.tensor([3e30, 4e30]), torch.tensor(2.0)])
        tensor([5.0000e+30, 2.0000e+00], dtype=torch.float64)
    """
    device = tensors[0].device
    found: dict[int, Tensor] = {}  # put in order by the stack: positions are never copied to the device
    for block in blocks([Item(tensor, None) for tensor in tensors]):
        found |= zip(
            block.positions, unit_squares(block.rows).squeeze(1).to(device, torch.float64).unbind(), strict=True
        )
    nothing = torch.zeros((), dtype=torch.float64, device=device)
    squares = torch.stack([found.get(at, nothing) for at in range(len(tensors))])
    return sum_over_shards(squares.unsqueeze(1), tensors if owners is None else owners).squeeze(1).sqrt_()


@torch.no_grad()
def each_product(tensors: Sequence[Tensor], others: Sequence[Tensor], owners: Sequence[Tensor] | None = None) -> Tensor:
    """`<x, y>` of each pair; float64, shape (tensors,), on the first's device; one small collective at most.

    Args:
        tensors: real tensors or the local parts of sharded ones, at least one.
        others: of the same shapes.
        owners: the (sharded) tensors that they are parts of.

    Example:
        >>> each_product([torch.tensor([3.0, 4.0])], [torch.tensor([2.0, 1.0])])
        tensor([10.], dtype=torch.float64)
    """
    device = tensors[0].device
    found = [
        (one.to(working_dtype(one)) * other.to(working_dtype(one))).sum(dtype=torch.float64).to(device)
        for one, other in zip(tensors, others, strict=True)
    ]
    return sum_over_shards(torch.stack(found).unsqueeze(1), tensors if owners is None else owners).squeeze(1)


def _power(tensors: Sequence[Tensor], largest: Tensor | None, order: float) -> Tensor:
    """`sum |x / m|^p`, shape ()."""
    flats = [flat_part(tensor, position) for position, tensor in enumerate(tensors)]
    total: Tensor | None = None
    for kind in by_kind(flats):
        members = [flats[position] for position in kind]
        found: Tensor | None = None
        if largest is None and order == 2 and members[0].device.type == "cpu":
            found = _quick_squares(members)
            sound = LEAST_SQUARES[torch.float32] < float(found) < math.inf
            found = found if sound else None
        if found is None:
            found = sum(_wide_powers(members, largest, order), torch.zeros((), dtype=torch.float64))
        total = found if total is None else total + found.to(total.device)
    assert total is not None
    return total


def _quick_squares(flats: Sequence[Tensor]) -> Tensor:
    """`sum x^2` of flat tensors on a CPU by float32 sums over short stretches, joined in float64: not finite where an entry is
    not or a square is out of float32's range, and too small where squares are below it.
    """
    norms, small = [], []
    for tensor in flats:
        if tensor.numel() >= ALONE and tensor.numel() % SQUARED == 0 and tensor.dtype == torch.float32:
            norms.append(torch.linalg.vector_norm(tensor.view(-1, SQUARED), 2, 1))
        else:
            small.append(tensor)
    buffer = torch.empty(min(GATHERED, sum([tensor.numel() for tensor in small]) + SQUARED))
    for _, parts in pieces(small, GATHERED - SQUARED):
        together = torch.cat(parts, out=buffer[: sum([part.numel() for part in parts])])
        whole = together.numel() // SQUARED * SQUARED
        norms.append(torch.linalg.vector_norm(together[:whole].view(-1, SQUARED), 2, 1))
        if whole < together.numel():
            norms.append(torch.linalg.vector_norm(together[whole:]).unsqueeze(0))
    if not norms:
        return torch.zeros((), dtype=torch.float64)
    found = torch.cat(norms).double()
    return found.dot(found)


def _wide_powers(flats: Sequence[Tensor], largest: Tensor | None, order: float) -> Iterator[Tensor]:
    device = flats[0].device
    for _, parts in pieces(flats, GATHERED if device.type == "cpu" else BATCH_ON_ACCELERATOR):
        wide = torch.cat(parts).double()
        if largest is not None:
            wide.div_(torch.where(largest == 0, 1, largest).to(device))
        # a sum, pairwise: torch's norm adds in one register
        yield (wide.square_() if order == 2 else wide.abs_().pow_(order)).sum()

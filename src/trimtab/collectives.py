"""Sums across ranks and shards, so that a statistic is of the whole tensor wherever its parts lie.

A replicated parameter (one process, or DDP) needs no communication. A sharded one (FSDP2, a DTensor) holds a part on
each rank: sums over the local part are added over the mesh dimensions that shard it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """True inside an initialised process group of more than one rank."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def is_sharded(tensor: Tensor) -> bool:
    """True for a DTensor."""
    if type(tensor) in (Tensor, torch.nn.Parameter) or not dist.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def local_part(tensor: Tensor) -> Tensor:
    """The part of `tensor` that lies on this rank: its local shard for a DTensor, else the tensor itself (no copy).

    Example:
        >>> weight = torch.ones(2)
        >>> local_part(weight) is weight
        True
    """
    if is_sharded(tensor):
        local: Tensor = tensor.to_local()  # type: ignore[attr-defined]
        return local
    return tensor


def _sharded_groups(tensor: Tensor) -> tuple[dist.ProcessGroup, ...]:
    from torch.distributed.tensor import DTensor

    assert isinstance(tensor, DTensor)
    mesh = tensor.device_mesh
    partial = [str(placement) for placement in tensor.placements if placement.is_partial()]
    if partial:
        raise ValueError(
            f"a DTensor with pending sums (placements {tensor.placements}) has no values yet; redistribute it"
        )
    return tuple(
        mesh.get_group(axis) for axis, placement in enumerate(tensor.placements) if not placement.is_replicate()
    )


def sum_over_shards(rows: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Add the rows of sharded parameters over the ranks that hold their parts; one collective per process group.

    Args:
        rows: shape (len(parameters), k), any real dtype; row i holds k sums over `local_part(parameters[i])`.
        parameters: the tensors the rows belong to, in the same order on every rank.

    Returns:
        A tensor like `rows`, where row i holds the sums over the whole of parameter i. `rows` itself when nothing
        is sharded.

    Example:
        >>> rows = torch.tensor([[3.0]])
        >>> sum_over_shards(rows, [torch.ones(3)]) is rows
        True
    """
    return _over_shards(rows, parameters, "sum")


def max_over_shards(rows: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """As `sum_over_shards`, with the greatest instead of the sum; rows without NaN.

    Example:
        >>> rows = torch.tensor([[3.0]])
        >>> max_over_shards(rows, [torch.ones(3)]) is rows
        True
    """
    return _over_shards(rows, parameters, "max")


def _over_shards(rows: Tensor, parameters: Sequence[Tensor], join: Literal["sum", "max"]) -> Tensor:
    if rows.shape[0] != len(parameters):
        raise ValueError(f"got {rows.shape[0]} rows for {len(parameters)} parameters")
    pending: dict[tuple[dist.ProcessGroup, ...], list[int]] = {}
    for position, parameter in enumerate(parameters):
        if is_sharded(parameter):
            groups = _sharded_groups(parameter)
            if groups:
                pending.setdefault(groups, []).append(position)
    if not pending:
        return rows
    rows = rows.clone()
    for groups, positions in pending.items():
        index = torch.tensor(positions, device=rows.device)
        block = rows.index_select(0, index).contiguous()
        for group in groups:
            dist.all_reduce(block, dist.ReduceOp.SUM if join == "sum" else dist.ReduceOp.MAX, group=group)
        rows.index_copy_(0, index, block)
    return rows


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum of `tensor` over all ranks of the default group; the tensor itself in a single process."""
    if not is_distributed():
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def max_over_ranks(tensor: Tensor) -> Tensor:
    """Largest of `tensor` over all ranks of the default group, elementwise; the tensor itself in a single process.

    Example:
        >>> tensor = torch.ones(2)
        >>> max_over_ranks(tensor) is tensor
        True
    """
    if not is_distributed():
        return tensor
    largest = tensor.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return largest


def first_ranks_(tensor: Tensor) -> Tensor:
    """Write what rank 0 holds into `tensor` (contiguous) on every rank, and give it; as it is in a single process.

    Example:
        >>> first_ranks_(torch.ones(2))
        tensor([1., 1.])
    """
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


def from_first_rank(value: int, device: torch.device | None = None) -> int:
    """The integer that rank 0 holds, on every rank; `value` itself in a single process.

    Example:
        >>> from_first_rank(7)
        7
    """
    if not is_distributed():
        return value
    return int(first_ranks_(torch.tensor([value], dtype=torch.int64, device=device)).item())

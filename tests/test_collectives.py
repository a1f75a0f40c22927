"""Sums across shards and ranks on two gloo processes, and their single-process limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import on_two_ranks
from trimtab import collectives
from trimtab.penalties import VarianceAmplifier


def _on_rank(rank: int, world: int) -> dict[str, Any]:
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    matrix = torch.arange(15.0).view(5, 3)
    sharded = distribute_tensor(matrix, mesh, [Shard(0)])
    by_column = distribute_tensor(matrix[:, :1], mesh, [Shard(0)])
    replicated = distribute_tensor(matrix, mesh, [Replicate()])
    parameters: list[Tensor] = [matrix, sharded, replicated, by_column]
    rows = torch.stack(
        [torch.stack([part.sum(), part.square().sum()]) for part in map(collectives.local_part, parameters)]
    )
    kept = rows.clone()

    calls = []
    plain_all_reduce = dist.all_reduce

    def counting(*arguments: Any, **keywords: Any) -> Any:
        calls.append(1)
        return plain_all_reduce(*arguments, **keywords)

    dist.all_reduce = counting
    try:
        summed = collectives.sum_over_shards(rows, parameters)
        one_call = len(calls)
        weights = [torch.nn.Parameter(item) for item in (sharded, by_column)]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        VarianceAmplifier(1.0).add_gradient_(weights)
        calls_of_penalty = len(calls) - one_call
    finally:
        dist.all_reduce = plain_all_reduce
    assert torch.equal(rows, kept)
    partial = sharded.to_local().sum()
    from torch.distributed.tensor import DTensor

    pending = DTensor.from_local(partial, mesh, [Partial()])
    with pytest.raises(ValueError, match="pending sums"):
        collectives.sum_over_shards(torch.ones(1, 1), [pending])
    return {
        "summed": summed,
        "calls": one_call,
        "calls_of_penalty": calls_of_penalty,
        "over_ranks": collectives.sum_over_ranks(torch.tensor([rank + 1.0])),
        "from_first": collectives.from_first_rank(40 + rank),
        "distributed": collectives.is_distributed(),
        "sharded": [collectives.is_sharded(item) for item in parameters],
        "local_rows": collectives.local_part(sharded).shape[0],
    }


def test_on_two_ranks():
    results = on_two_ranks(_on_rank)
    matrix = torch.arange(15.0).view(5, 3)
    whole = torch.stack([matrix.sum(), matrix.square().sum()])
    column = torch.stack([matrix[:, 0].sum(), matrix[:, 0].square().sum()])
    for result in results:
        assert torch.equal(result["summed"], torch.stack([whole, whole, whole, column]))
        assert result["calls"] == 1
        assert result["calls_of_penalty"] == 1
        assert result["over_ranks"].item() == 3.0
        assert result["from_first"] == 40
        assert result["distributed"] is True
        assert result["sharded"] == [False, True, True, True]
    assert [result["local_rows"] for result in results] == [3, 2]


def test_single_process_needs_no_communication():
    rows = torch.ones(2, 3)
    tensors = [torch.ones(2), torch.nn.Parameter(torch.ones(3))]
    assert collectives.sum_over_shards(rows, tensors) is rows
    assert collectives.sum_over_ranks(rows) is rows
    assert collectives.from_first_rank(5) == 5
    assert not collectives.is_distributed()
    assert collectives.local_part(tensors[1]) is tensors[1]


def test_rows_must_match_parameters():
    with pytest.raises(ValueError, match="got 1 rows for 2 parameters"):
        collectives.sum_over_shards(torch.ones(1, 3), [torch.ones(2), torch.ones(2)])

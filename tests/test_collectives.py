"""Sums across shards and ranks on two gloo processes, and their single-process limits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed import on_ranks, on_two_ranks
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


def _whole() -> Tensor:
    return torch.arange(1.0, 36.0, dtype=torch.float64).view(7, 5) / 10  # divides evenly into nothing


def _on_a_square(rank: int, world: int) -> dict[str, Any]:
    """Placements over a 2 x 2 mesh: sums over the whole tensor, VAR, and the norm that SAM takes."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    from trimtab.optimizers.norms import global_norm

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    cases = {
        "both axes": (Shard(0), Shard(1)),
        "one axis twice": (Shard(0), Shard(0)),
        "hybrid": (Replicate(), Shard(0)),
        "tensor parallel": (Shard(1), Replicate()),
        "replicated": (Replicate(), Replicate()),
    }
    tensors = {name: distribute_tensor(_whole(), mesh, placements) for name, placements in cases.items()}
    # How FSDP2 lays out what tensor parallelism already split along the same axis: the second split is outermost.
    tensors["strided"] = _strided(mesh, _StridedShard, Shard)
    parameters: list[Tensor] = [_whole(), *tensors.values()]
    parts = [collectives.local_part(parameter) for parameter in parameters]
    rows = torch.stack(
        [torch.stack([part.sum(), part.square().sum(), torch.tensor(float(part.numel()))]) for part in parts]
    )
    penalty = VarianceAmplifier(1e-3)
    weights = {name: torch.nn.Parameter(tensor) for name, tensor in tensors.items()}
    for weight in weights.values():
        weight.grad = torch.zeros_like(weight)
    penalty.add_gradient_(list(weights.items()))
    with pytest.raises(ValueError, match="pending sums"):
        collectives.sum_over_shards(torch.ones(1, 1), [_pending(mesh, (Shard(0), Partial()))])
    return {
        "rows": collectives.sum_over_shards(rows, parameters),
        "norm": global_norm(parts, parameters),
        "per layer": penalty.per_layer(list(weights.items())),
        "gradients": {name: weight.grad.full_tensor() for name, weight in weights.items()},  # type: ignore[union-attr]
        "strided": tensors["strided"].full_tensor(),
        "placements": str(tensors["strided"].placements),
    }


def _strided(mesh: Any, strided: Any, shard: Any) -> Any:
    from torch.distributed.tensor import DTensor

    whole = _whole()[:4]  # the parts of one rank: two rows split by "tensor", then each by "data"
    row = mesh.get_local_rank("tensor") * 2 + mesh.get_local_rank("data")
    placements = (strided(0, split_factor=2), shard(0))
    return DTensor.from_local(
        whole[row : row + 1].clone(), mesh, placements, shape=whole.shape, stride=whole.stride(), run_check=False
    )


def _pending(mesh: Any, placements: Any) -> Tensor:
    from torch.distributed.tensor import DTensor

    pending: Tensor = DTensor.from_local(torch.ones(2), mesh, placements, run_check=False)
    return pending


@pytest.mark.slow
def test_on_a_mesh_of_two_axes():
    results = on_ranks(4, _on_a_square)
    whole, small = _whole(), _whole()[:4]
    expected = [[item.sum().item(), item.square().sum().item(), item.numel()] for item in [whole] * 6 + [small]]
    penalty = VarianceAmplifier(1e-3)
    slopes = {}
    for name, item in {"large": whole, "strided": small}.items():
        leaf = torch.nn.Parameter(item.clone())
        penalty.value([leaf]).backward()
        slopes[name] = leaf.grad
    for result in results:
        assert "_StridedShard" in result["placements"]
        assert torch.equal(result["strided"], small)
        torch.testing.assert_close(result["rows"], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0)
        assert result["norm"] == pytest.approx(sum(row[1] for row in expected) ** 0.5, rel=1e-12)
        for name, gradient in result["gradients"].items():
            size = "strided" if name == "strided" else "large"
            torch.testing.assert_close(gradient, slopes[size], rtol=1e-10, atol=1e-14)
            alone = penalty.per_layer([("w", torch.nn.Parameter(small if size == "strided" else whole))])["w"]
            assert result["per layer"][name] == pytest.approx(alone, rel=1e-12)

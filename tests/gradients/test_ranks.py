"""Two processes equal one: DDP, FSDP2 and channels that lie across ranks."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn

from tests.distributed import on_two_ranks
from tests.gradients.samples import gradients, sample
from trimtab.gradients import AdaptiveClip, Autoscale, Centralize, ClipNorm, GradientTransform, ZScore
from trimtab.parameters import Entry

SHARDED: dict[str, GradientTransform] = {
    "autoscale": Autoscale(),
    "autoscale-channel": Autoscale(granularity="channel"),
    "zscore": ZScore(),
    "zscore-channel": ZScore("channel"),
    "centralize": Centralize(),
    "adaptive_clip": AdaptiveClip(exclude_last_linear=False),
    "clip-1": ClipNorm(0.1, 1.0),
    "clip-2": ClipNorm(0.1),
    "clip-inf": ClipNorm(1e-3, math.inf),
}


def _entries() -> list[Entry]:
    return [entry for entry in sample() if entry.parameter.numel() and not entry.name.startswith("large")]


def _distribute(entries: list[Entry], dimension: int) -> list[Entry]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for_all = []
    for entry in entries:
        place = [Shard(dimension) if entry.parameter.ndim > dimension else Replicate()]
        parameter = nn.Parameter(distribute_tensor(entry.parameter.detach(), mesh, place))
        parameter.grad = distribute_tensor(entry.parameter.grad, mesh, place)
        for_all.append(Entry(entry.name, parameter, entry.output_axis))
    return for_all


def _on_rank(rank: int, world: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    collectives = []
    whole_reduce = dist.all_reduce

    def counted(*arguments: Any, **options: Any) -> Any:
        collectives.append(arguments[0].numel())
        return whole_reduce(*arguments, **options)

    for dimension in (0, 1):
        for name, transform in SHARDED.items():
            entries = _distribute(_entries(), dimension)
            collectives.clear()
            dist.all_reduce = counted
            copy.deepcopy(transform).before_step(entries)
            dist.all_reduce = whole_reduce
            results[f"{name} collectives {dimension}"] = list(collectives)
            for entry in entries:
                results[f"{name} {dimension} {entry.name}"] = entry.parameter.grad.full_tensor()
    return results


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, Any]]:
    return on_two_ranks(_on_rank)


@pytest.mark.parametrize("dimension", [0, 1])
@pytest.mark.parametrize("name", SHARDED)
def test_sharding_along_any_dimension_changes_nothing(on_ranks, name, dimension):
    entries = _entries()
    copy.deepcopy(SHARDED[name]).before_step(entries)
    for rank in on_ranks:
        for label, expected in gradients(entries).items():
            found = rank[f"{name} {dimension} {label}"]
            tolerance = 2e-5 * float(expected.abs().max())
            torch.testing.assert_close(
                found, expected, rtol=0, atol=tolerance, msg=lambda text, at=label: f"{at}: {text}"
            )


def test_global_statistics_take_one_small_collective(on_ranks):
    found = on_ranks[0]
    tensors = len(_entries())
    for dimension in (0, 1):
        for name in ("autoscale", "zscore", "clip-2", "clip-inf"):
            (numbers,) = found[f"{name} collectives {dimension}"]
            assert numbers <= 4 * tensors, name
    # sharded along their channels, these need none but for what is cut: transposed convolutions and single units
    for name in ("zscore-channel", "centralize", "adaptive_clip"):
        assert len(found[f"{name} collectives 0"]) == 1
        assert len(found[f"{name} collectives 1"]) == 1

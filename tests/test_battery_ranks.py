"""Every lever that acts in `trimtab train` on two processes equals one: replicated (DDP), with the
optimizer's state in shards of its own (ZeroRedundancyOptimizer), and with weights sharded too (FSDP2).

All rows go through one pair of processes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from tests.battery import RIGHT, ROWS, Row
from tests.battery_loops import Training, as_arrays, distance, kept_weights, network, terms, weights, written_out
from tests.distributed import on_two_ranks

STEPS = 3


def _replicated() -> nn.Module:
    return nn.parallel.DistributedDataParallel(network())


def _sharded() -> nn.Module:
    net = network()
    mesh = init_device_mesh("cpu", (2,))
    for layer in (net[0], net[2], net):
        fully_shard(layer, mesh=mesh)
    return net


WRAPPERS = {"ddp": _replicated, "zero": _replicated, "fsdp2": _sharded}
CASES = {
    f"{wrapper} {row}": (wrapper, row)
    for wrapper in WRAPPERS
    for row in ROWS
    if wrapper != "zero" or row.home != "optimizer"  # which takes the step itself
}


def _on_rank(rank: int, world: int) -> dict[str, Any]:
    """The weights after training, or the words with which it was refused."""
    found: dict[str, Any] = {}
    for case, (wrapper, row) in CASES.items():
        net = WRAPPERS[wrapper]()
        try:
            if row.home == "penalty":
                penalty = row.create()
                found[f"{case} value"] = [penalty.value(net).item(), *penalty.per_layer(net).values()]
            training = Training(row, net, rank=rank, world=world, own_shards=wrapper == "zero")
            for step in range(STEPS):
                training.step(step)
            found[case] = weights(net)
            found[f"{case} kept"] = training.finish()
        except ValueError as error:
            found[case] = str(error)
    return found


@pytest.fixture(scope="module")
def on_ranks() -> list[dict[str, Any]]:
    return on_two_ranks(_on_rank)


@pytest.mark.parametrize("case", CASES)
def test_two_processes_equal_one(on_ranks: list[dict[str, Any]], case: str) -> None:
    wrapper, row = CASES[case]
    expected = list(written_out(row, range(STEPS)))[-1]
    refused = {"fsdp2": row.sharded, "zero": row.elsewhere}.get(wrapper, RIGHT)
    for rank in on_ranks:
        found = rank[case]
        if refused != RIGHT:
            assert refused in found
        else:
            assert all(isinstance(tensor, torch.Tensor) for tensor in found), found
            assert distance(found, expected) < max(1e-8, row.loose)
            kept = kept_weights(row, range(STEPS))
            assert distance(rank[f"{case} kept"], kept) < max(1e-8, row.loose)


@pytest.mark.parametrize("row", [row for row in ROWS if row.home == "penalty"], ids=str)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_value_of_a_penalty_is_of_whole_tensors(on_ranks: list[dict[str, Any]], wrapper: str, row: Row) -> None:
    layers = [psi for psi, _ in terms(row, [w for w in as_arrays(weights(network())) if w.ndim > 1], {})]
    penalty = row.create()
    strength = getattr(penalty, "strength_now", penalty.strength)
    for rank in on_ranks:
        if wrapper == "fsdp2" and row.sharded != RIGHT:
            assert row.sharded in rank[f"{wrapper} {row}"]
        else:
            assert rank[f"{wrapper} {row} value"] == pytest.approx([strength * sum(layers), *layers], rel=1e-9)

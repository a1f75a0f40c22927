"""Two processes against one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.distributed import on_two_ranks
from tests.optimizers.nets import batch, closure_for, mlp, weights, wrap
from trimtab.optimizers import CrAM

STEPS = 3


def half(step: int, rank: int) -> tuple[Tensor, Tensor]:
    images, labels = batch(step, size=32)
    return images[rank::2], labels[rank::2]


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), 0.1, 0.9)


def replicated(rank: int, method: str) -> list[Tensor]:
    model = mlp()
    parallel = DistributedDataParallel(model, gradient_as_bucket_view=True)
    # CrAM's ranks get different seeds: rank 0's draw must hold for both.
    optimizer = wrap(method, sgd(model), parallel, seed=3 + 10 * rank)
    for step in range(STEPS):
        optimizer.step(closure_for(parallel, optimizer, half(step, rank)))
    return weights(model)


def sharded(rank: int, world: int, method: str) -> list[Tensor]:
    model = mlp()
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = wrap(method, sgd(model))
    for step in range(STEPS):
        optimizer.step(closure_for(model, optimizer, half(step, rank)))
    return [parameter.full_tensor().detach() for parameter in model.parameters()]  # type: ignore[attr-defined]


def draws(rank: int) -> list[int]:
    optimizer = CrAM(sgd(mlp()), 0.2, (0.1, 0.2, 0.3, 0.4), seed=rank)
    return [optimizer._draw(4, torch.device("cpu")) for _ in range(20)]


def everything(rank: int, world: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    found: dict[str, Any] = {"draws": draws(rank)}
    for method in ("sam", "cram+"):
        found[f"replicated {method}"] = replicated(rank, method)
    for method in ("sam", "asam"):
        found[f"sharded {method}"] = sharded(rank, world, method)
    with pytest.raises(ValueError, match="sharded weights"):
        sharded(rank, world, "cram")
    return found


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return on_two_ranks(everything)


def test_one_draw_for_all_ranks(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["draws"] == ranks[1]["draws"]
    assert len(set(ranks[0]["draws"])) == 4


@pytest.mark.parametrize("case", ["replicated sam", "replicated cram+", "sharded sam", "sharded asam"])
def test_two_processes_equal_one_with_the_whole_batch(ranks: list[dict[str, Any]], case: str) -> None:
    model = mlp()
    optimizer = wrap(case.split()[1], sgd(model), model)
    for step in range(STEPS):
        optimizer.step(closure_for(model, optimizer, batch(step, size=32)))
    for one, other, alone in zip(ranks[0][case], ranks[1][case], weights(model), strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one, alone, rtol=1e-5, atol=1e-6)

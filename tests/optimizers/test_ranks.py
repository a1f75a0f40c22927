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
from tests.optimizers.nets import batch, closure_for, mlp, same, weights, wrap
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


def overflow_on_one_shard(rank: int, world: int, method: str, bad_pass: int) -> dict[str, Any]:
    """A step whose gradient holds inf in rank 1's shard alone, then a good one."""
    model = mlp()
    mesh = init_device_mesh("cpu", (world,))
    fully_shard(model[0], mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = wrap(method, sgd(model))  # PyTorch has no fused SGD for sharded weights
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    passes: list[int] = []

    def closure() -> Tensor:
        loss = closure_for(model, optimizer, half(0, rank), scaler)()
        passes.append(1)
        gradient = model[0].weight.grad.to_local()  # type: ignore[union-attr, operator]
        if len(passes) == bad_pass and rank == 1:
            gradient[0, 0] = torch.inf
        assert bool(gradient.isfinite().all()) is (len(passes) != bad_pass or rank == 0)
        return loss

    before = [parameter.full_tensor().detach() for parameter in model.parameters()]  # type: ignore[attr-defined]
    optimizer.step(closure, grad_scaler=scaler)
    scaler.update()
    after = [parameter.full_tensor().detach() for parameter in model.parameters()]  # type: ignore[attr-defined]
    skipped = {
        "scale": scaler.get_scale(),
        "same": same(before, after),
        "passes": len(passes),
        "steps": optimizer.steps,
    }
    optimizer.step(closure_for(model, optimizer, half(0, rank), scaler), grad_scaler=scaler)
    scaler.update()
    return {
        **skipped,
        "weights": [parameter.full_tensor().detach() for parameter in model.parameters()],  # type: ignore[attr-defined]
        "scale after": scaler.get_scale(),
    }


OVERFLOWS = [(method, bad_pass) for method in ("sam", "asam") for bad_pass in (1, 2)]


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
    for case in OVERFLOWS:
        found[f"overflow {case}"] = overflow_on_one_shard(rank, world, *case)
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


@pytest.mark.parametrize("case", OVERFLOWS)
def test_every_rank_skips_when_one_shard_overflows(ranks: list[dict[str, Any]], case: tuple[str, int]) -> None:
    model = mlp()
    optimizer = wrap(case[0], sgd(model), model)
    optimizer.step(closure_for(model, optimizer, batch(0, size=32)))
    for rank in ranks:
        found = rank[f"overflow {case}"]
        assert found["same"] is True
        assert found["scale"] == 512.0
        assert found["passes"] == case[1]  # no rank goes on to a second pass alone: its collectives would hang
        assert found["steps"] == 0
        assert found["scale after"] == 512.0
        for left, right in zip(found["weights"], weights(model), strict=True):  # the next step is taken as usual
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)

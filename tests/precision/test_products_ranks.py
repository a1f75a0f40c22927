"""Products of rounded operands on two ranks: replicated and sharded networks against one process."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import trimtab
from tests.distributed import on_two_ranks
from trimtab.precision import LowPrecision, ShrinkageMeter


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(24, 20), nn.Tanh(), nn.Linear(20, 3))


def batch(rank: int) -> torch.Tensor:
    return torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(rank))


def step(net: nn.Module, inputs: torch.Tensor, recipe: str) -> tuple[torch.optim.Optimizer, ShrinkageMeter]:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
    meter = ShrinkageMeter(every=1)
    trimtab.attach(optimizer, LowPrecision(matmul=recipe, meter=meter), model=net)
    net(inputs).square().mean().backward()
    return optimizer, meter


def on_a_rank(rank: int, world: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for kind in ("replicated", "sharded"):
        net: nn.Module = network()
        if kind == "replicated":
            net = DistributedDataParallel(net)
        else:
            mesh = init_device_mesh("cpu", (world,))
            for layer in (net[0], net[2], net[4]):  # type: ignore[index]
                fully_shard(layer, mesh=mesh)
            fully_shard(net, mesh=mesh)
        optimizer, meter = step(net, batch(rank), "mxfp4")
        optimizer.step()
        found[kind] = [getattr(parameter, "full_tensor", parameter.clone)().detach() for parameter in net.parameters()]
        rows = {(row["kind"], row["layer"]): row for row in meter.table().to_pylist()}
        found[f"{kind} rows"] = [rows["wgrad gradient", "2"]["n"], rows["fprop", "(global)"]["loss_gap"]]
    for kind in ("replicated", "sharded"):
        late = network()
        wrapped: nn.Module = DistributedDataParallel(late) if kind == "replicated" else fully_shard(late)
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.0)
        lever = LowPrecision(matmul="fp8-delayed")
        trimtab.attach(optimizer, lever, model=wrapped)
        wrapped((1 + rank) * batch(0)).square().mean().backward()
        optimizer.step()
        assert lever.operands is not None
        seen = lever.operands.delayed.magnitudes
        assert seen is not None
        found[f"{kind} history"] = {key: float(seen.of(key)[-1]) for key in seen.keys}
    noisy = network()
    optimizer, _ = step(noisy, batch(0), "nvfp4-all-layers")
    found["noise"] = noisy[4].weight.grad
    return found


def test_two_ranks_step_as_one_process_does() -> None:
    ranks = on_two_ranks(on_a_rank)
    wanted, gaps = network(), []
    mean = [torch.zeros_like(parameter) for parameter in wanted.parameters()]
    for rank in (0, 1):
        alone = network()
        optimizer, meter = step(alone, batch(rank), "mxfp4")
        for total, parameter in zip(mean, alone.parameters(), strict=True):
            assert parameter.grad is not None
            total += parameter.grad / 2
        optimizer.step()
        rows = {(row["kind"], row["layer"]): row for row in meter.table().to_pylist()}
        gaps.append(rows["fprop", "(global)"]["loss_gap"])
    expected = [(parameter - 0.5 * g).detach() for parameter, g in zip(wanted.parameters(), mean, strict=True)]
    for found in ranks:
        for kind in ("replicated", "sharded"):
            torch.testing.assert_close(found[kind], expected, rtol=1e-5, atol=1e-6)
            assert found[f"{kind} rows"][0] == 2 * 8 * 20
            torch.testing.assert_close(found[f"{kind} rows"][1], sum(gaps) / 2, rtol=1e-6, atol=0)
    for kind in ("replicated", "sharded"):  # the largest of both, which is the second's
        assert ranks[0][f"{kind} history"] == ranks[1][f"{kind} history"]
        assert ranks[0][f"{kind} history"]["activation of 0"] == float((2 * batch(0)).abs().max())
    assert ranks[0]["replicated history"] == ranks[0]["sharded history"]
    assert not torch.equal(ranks[0]["noise"], ranks[1]["noise"])  # the same batch, numbers of each rank's own

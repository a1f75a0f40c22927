"""GradientTracker in the loops it must survive: scalers, accumulation, SAM, compiled networks, several ranks; no waiting."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.distributed import on_two_ranks
from tests.observe.oracle import assert_row
from trimtab.observe import GradientTracker
from trimtab.observe import sums as floor
from trimtab.optimizers import SAM
from trimtab.parameters import Rule

EVERYTHING = ("gradients", "weights", "updates")
INPUTS = torch.randn(8, 6, generator=torch.Generator().manual_seed(7))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def rows_of(tracker: GradientTracker) -> dict[tuple[int, str, str], dict[str, Any]]:
    return {(row["step"], row["kind"], row["layer"]): row for row in tracker.table().to_pylist()}


def assert_same(found: dict[Any, dict[str, Any]], wanted: dict[Any, dict[str, Any]], rel: float = 1e-5) -> None:
    assert list(found) == list(wanted)
    for key, row in wanted.items():
        for name, value in row.items():
            if isinstance(value, float):
                assert found[key][name] == pytest.approx(value, rel=rel, abs=1e-7, nan_ok=True), (key, name)
            else:
                assert found[key][name] == value, (key, name)


def plain_run(steps: int = 2) -> dict[tuple[int, str, str], dict[str, Any]]:
    net = network()
    optimizer, tracker = torch.optim.SGD(net.parameters(), lr=0.1), GradientTracker(EVERYTHING)
    trimtab.attach(optimizer, tracker, model=net)
    for _ in range(steps):
        optimizer.zero_grad()
        net(INPUTS).square().mean().backward()
        optimizer.step()
    return rows_of(tracker)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("unscale_first", [True, False])
def test_gradients_are_unscaled_and_a_skipped_step_is_no_step(fused: bool, unscale_first: bool) -> None:
    if not (fused or unscale_first):
        return  # a scaler unscales by itself there: the same as unscale_first
    net = network()
    optimizer, tracker = torch.optim.SGD(net.parameters(), lr=0.1, fused=fused), GradientTracker(EVERYTHING)
    trimtab.attach(optimizer, tracker, model=net)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale(factor * net(INPUTS).square().mean()).backward()
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    assert_same(rows_of(tracker), plain_run())


@pytest.mark.parametrize("fused", [True, False])
def test_scaler_that_unscales_by_itself(fused: bool) -> None:
    net = network()
    optimizer, tracker = torch.optim.AdamW(net.parameters(), lr=0.1, fused=fused), GradientTracker()
    trimtab.attach(optimizer, tracker, model=net)
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    scaler.scale(net(INPUTS).square().mean()).backward()
    gradient = net[0].weight.grad / 4096
    scaler.step(optimizer)
    row = rows_of(tracker)[0, "gradients", "0.weight"]
    assert_row(row, gradient)
    assert row["norm"] == pytest.approx(float(gradient.double().norm())), "without the scale of 4096"


def test_accumulated_gradients_are_one_step() -> None:
    net = network()
    optimizer, tracker = torch.optim.SGD(net.parameters(), lr=0.1), GradientTracker(EVERYTHING)
    trimtab.attach(optimizer, tracker, model=net)
    for _ in range(2):
        optimizer.zero_grad()
        for part in INPUTS.chunk(4):
            (net(part).square().mean() / 4).backward()
        optimizer.step()
    assert_same(rows_of(tracker), plain_run())


def test_under_sam_a_step_is_one_step_at_the_weights_themselves() -> None:
    net = network()
    before = net[0].weight.detach().clone()
    optimizer, tracker = SAM(torch.optim.SGD(net.parameters(), lr=0.1), rho=0.5), GradientTracker(EVERYTHING)
    trimtab.attach(optimizer, tracker, model=net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = net(INPUTS).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    rows = rows_of(tracker)
    assert {key[0] for key in rows} == {0}
    assert_row(rows[0, "weights", "0.weight"], before, weights=True)
    assert_row(rows[0, "updates", "0.weight"], net[0].weight.detach() - before, rel=1e-4)


def test_compiled_network() -> None:
    net = network()
    compiled = torch.compile(net, backend="eager")
    optimizer, tracker = torch.optim.SGD(compiled.parameters(), lr=0.1), GradientTracker(EVERYTHING)
    trimtab.attach(optimizer, tracker, model=compiled)
    for _ in range(2):
        optimizer.zero_grad()
        compiled(INPUTS).square().mean().backward()
        optimizer.step()
    assert_same(rows_of(tracker), plain_run())


WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__")


def test_nothing_waits_for_the_device_between_flushes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts what a Python program can wait by, in the form that is used on accelerators; a GPU is not at hand here."""
    real_sums = floor.Sums
    monkeypatch.setattr(
        "trimtab.observe.quantities.Sums", lambda sizes, dtype, device: real_sums(sizes, dtype, device, looks=False)
    )
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    scale = trimtab.gradients.Autoscale()
    tracker = GradientTracker(EVERYTHING, capacity=5, rule=Rule(min_ndim=1)).watch(scale)
    trimtab.attach(optimizer, tracker, model=net)

    def step() -> None:
        net(INPUTS).square().mean().backward()
        optimizer.step()

    step()  # layouts are made at the first one
    waits: list[str] = []

    def counted(name: str) -> Callable[..., Any]:
        real = getattr(Tensor, name)

        def call(tensor: Tensor, *given: Any, **settings: Any) -> Any:
            waits.append(name)
            return real(tensor, *given, **settings)

        return call

    for name in WAITS:
        monkeypatch.setattr(Tensor, name, counted(name))
    for _ in range(3):
        step()
    assert waits == []
    step()  # the fifth: full, fetched
    assert waits.count("cpu") == 1
    assert tracker._rows.sums.steps == []


def test_nothing_depends_on_values_on_an_accelerator() -> None:
    """The same by the dispatcher: tensors without values raise where an operation needs one, or a copy to the host."""
    from trimtab.observe.quantities import RAW, STATISTICS, Quantities

    device = torch.device("meta")
    tensors = [torch.empty(300, 7, device=device), torch.empty(5, device=device, dtype=torch.bfloat16)]
    with pytest.raises((RuntimeError, NotImplementedError)):
        tensors[0].sum().item()
    quantities = Quantities(STATISTICS, "float16")
    found = quantities(tensors, tensors, device)
    assert found.shape == (2, len(RAW))
    assert found.device == device
    again = quantities(tensors, tensors, device)
    assert again.dtype == torch.float64


def sharded_run(rank: int, world: int, kind: str) -> list[list[Any]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net: nn.Module = network()
    inputs = INPUTS.chunk(world)[rank]
    if kind == "ddp":
        net = nn.parallel.DistributedDataParallel(net)
    else:
        mesh = init_device_mesh("cpu", (world,))
        for layer in (net[0], net[2]):  # type: ignore[index]
            fully_shard(layer, mesh=mesh)
        fully_shard(net, mesh=mesh)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracker = GradientTracker(EVERYTHING)
    trimtab.attach(optimizer, tracker, model=net)
    calls = []
    import torch.distributed as dist

    real = dist.all_reduce
    for step in range(2):
        optimizer.zero_grad()
        net(inputs).square().mean().backward()
        if step == 1:
            dist.all_reduce = lambda *given, **settings: calls.append(given[0].numel()) or real(*given, **settings)
        optimizer.step()
    dist.all_reduce = real
    found = [[row[name] for name in row] for row in tracker.table().to_pylist()]
    return [found, calls]


@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_two_ranks_give_the_rows_of_one(kind: str) -> None:
    wanted = [list(row.values()) for row in plain_run().values()]
    for found, calls in on_two_ranks(sharded_run, kind):
        assert len(found) == len(wanted)
        for row, want in zip(found, wanted, strict=True):
            assert row[:4] == want[:4]
            for value, expected in zip(row[4:], want[4:], strict=True):
                assert value == (None if expected is None else pytest.approx(expected, rel=1e-4, abs=1e-7))
        # sums and maxima of three kinds, and what is near zero of one
        assert len(calls) == (0 if kind == "ddp" else 7)
        assert all(numbers <= 2 * 13 for numbers in calls)


def writing_run(rank: int, world: int, folder: str) -> list[int]:
    net = nn.parallel.DistributedDataParallel(network())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracker = GradientTracker(folder=folder, capacity=1)
    trimtab.attach(optimizer, tracker, model=net)
    for _ in range(2):
        net(INPUTS).square().mean().backward()
        optimizer.step()
        torch.distributed.barrier()
    state = tracker.state_dict()
    tracker.load_state_dict(state)
    torch.distributed.barrier()
    return [tracker.step, tracker.table().num_rows]


def test_one_rank_writes_and_all_read(tmp_path: Any) -> None:
    assert on_two_ranks(writing_run, str(tmp_path)) == [[2, 6], [2, 6]]


def not_finite_in_one_shard(rank: int, world: int) -> list[list[float]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    from trimtab.observe.quantities import STATISTICS, Quantities

    mesh = init_device_mesh("cpu", (world,))
    bad, good = torch.arange(12.0).view(4, 3), torch.tensor([[1.0, 2.0]])
    bad[3, 0], bad[0, 0] = float("nan"), float("inf")
    parts: list[Tensor] = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in (bad, good)]
    found = Quantities(STATISTICS, "float16")(parts, parts, torch.device("cpu"))
    whole = Quantities(STATISTICS, "float16")([bad, good], [bad, good], torch.device("cpu"))
    return [found.tolist(), whole.tolist()]


def test_nan_in_one_shard_is_known_to_all() -> None:
    for found, whole in on_two_ranks(not_finite_in_one_shard):
        for row, want in zip(found, whole, strict=True):
            assert row == pytest.approx(want, rel=1e-9, nan_ok=True)
        assert found[1] == pytest.approx([2, 3, 0.5, 2, 0, 0, 0, 0, 3, 0.5, 0])

"""ShrinkageMeter against NumPy in float64, on the tensors where one number hides what happened."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.distributed import on_two_ranks
from trimtab.precision import (
    MX,
    Block,
    LowPrecision,
    PerTensor,
    ShrinkageMeter,
    named,
    quantize,
    shrinkage,
    shrinkage_sums,
)
from trimtab.tables.parts import read_table

QUANTITIES = ("norm", "projection", "norm_ratio", "noise_to_signal", "cosine", "dead", "overflow")


def oracle(g: Tensor, rounded: Tensor, largest: float = math.inf) -> dict[str, float]:
    """The definitions, written out."""
    x, y = g.double().numpy().ravel(), rounded.double().numpy().ravel()
    norm = np.linalg.norm(x)
    q = x @ y / norm**2
    nonzero = x != 0
    return {
        "norm": norm,
        "projection": q,
        "norm_ratio": np.linalg.norm(y) / norm,
        "noise_to_signal": np.linalg.norm(y - q * x) / norm,
        "cosine": x @ y / (norm * np.linalg.norm(y)),
        "dead": ((y == 0) & nonzero).sum() / nonzero.sum(),
        "overflow": (np.abs(x) > largest).sum() / nonzero.sum(),
    }


def rows_of(meter: ShrinkageMeter) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = meter.table().to_pylist()
    return rows


def close(row: dict[str, float], expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, rel=1e-7, abs=1e-12), name


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "e2m1", "int4", "fp16"])
@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
def test_against_numpy(format, rounding):
    generator = torch.Generator().manual_seed(1)
    shapes = {"one": (40, 30), "two": (300, 301), "three": (7,)}
    pairs = {}
    for spread, (name, shape) in enumerate(shapes.items()):
        g = torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).mul(2 * spread).exp()
        g.view(-1)[::5] = 0
        pairs[name] = (g, quantize(g, format, rounding, generator=generator))
    meter = ShrinkageMeter()
    meter.observe(3, pairs, format)
    rows = rows_of(meter)
    assert [(row["step"], row["layer"], row["kind"]) for row in rows] == [
        (3, name, "gradients") for name in (*shapes, "(global)")
    ]
    for row, (g, rounded) in zip(rows, pairs.values(), strict=False):
        close(row, oracle(g, rounded, named(format).max))
        assert row["n"] == g.numel()
    whole = [torch.cat([pair[side].flatten() for pair in pairs.values()]) for side in (0, 1)]
    close(rows[-1], oracle(*whole, named(format).max))


def test_one_number_hides_death():
    """Log-normal entries in unscaled e4m3: nearly all of the norm survives, and a tenth of the entries."""
    generator = torch.Generator().manual_seed(0)
    g = (2 * torch.randn(1000, 1000, generator=generator, dtype=torch.float64) - 9.49).exp().float()
    found = shrinkage(shrinkage_sums(g, quantize(g, "e4m3"), named("e4m3")))
    assert 0.995 < found.projection.item() < 0.999
    assert 0.88 < found.dead.item() < 0.92
    assert found.overflow.item() < 1e-3


def test_small_noise_is_not_lost_to_cancellation():
    """||g~||^2 - <g~, g>^2 / ||g||^2 would lose a noise of 1e-8 of the signal even in float64."""
    g = torch.randn(10_000, dtype=torch.float64)
    noise = 1e-8 * torch.randn(10_000, dtype=torch.float64)
    noise -= g * (noise @ g) / (g @ g)
    found = shrinkage(shrinkage_sums(g, g + noise))
    assert found.noise_to_signal.item() == pytest.approx((noise.norm() / g.norm()).item(), rel=1e-5)


@pytest.mark.parametrize("scaling", [PerTensor(), Block(size=8), MX(), MX(rule="ceil"), MX(rule="even")])
def test_overflow_counts_what_lies_above_the_scaled_largest_number(scaling):
    g = torch.randn(64, 32) * torch.logspace(-3, 3, 64)[:, None]
    format = named("e2m1")
    found = shrinkage(shrinkage_sums(g, quantize(g, format, scaling=scaling), format, scaling))
    if isinstance(scaling, MX):
        scales = scaling.scales(g, format)[:, None]
        assert found.overflow.item() == ((g / scales).abs() > format.max).double().mean().item()
        assert (found.overflow.item() > 0) == (scaling.rule != "ceil")
    else:
        assert found.overflow.item() == 0


def test_zero_tensors_have_no_projection():
    meter = ShrinkageMeter()
    meter.observe(0, {"zero": (torch.zeros(3), torch.zeros(3)), "live": (torch.ones(2), torch.ones(2) / 2)}, "e4m3")
    zero, live, together = rows_of(meter)
    assert zero["norm"] == 0
    assert all(math.isnan(zero[name]) for name in ("projection", "norm_ratio", "cosine", "dead", "noise_to_signal"))
    assert live["projection"] == together["projection"] == 0.5


def test_all_entries_dead():
    g = torch.full((5,), 1e-6)
    row = shrinkage(shrinkage_sums(g, quantize(g, "e4m3")))
    assert (row.projection.item(), row.norm_ratio.item(), row.noise_to_signal.item(), row.dead.item()) == (0, 0, 0, 1)
    assert math.isnan(row.cosine.item())


@pytest.mark.parametrize(("bad", "column"), [(math.nan, "nan"), (math.inf, "inf")])
def test_what_is_not_finite_is_counted_and_makes_no_number_up(bad, column):
    g = torch.tensor([1.0, bad, 2.0])
    meter = ShrinkageMeter()
    meter.observe(0, {"bad": (g, quantize(g, "e4m3")), "good": (torch.ones(3), torch.ones(3))}, "e4m3")
    row, good, together = rows_of(meter)
    assert row[column] == together[column] == 1
    assert math.isnan(row["projection"])
    assert math.isnan(together["projection"])
    assert good["projection"] == 1
    assert row["overflow"] == (1 / 3 if column == "inf" else 0)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 200), st.floats(0.01, 100), st.sampled_from(["nearest", "toward_zero", "stochastic"]),
    st.integers(0, 10**6),
)  # fmt: skip
def test_invariants(size, spread, rounding, seed):
    generator = torch.Generator().manual_seed(seed)
    g = torch.randn(size, generator=generator) * spread
    rounded = quantize(g, "e3m2", rounding, generator=generator)
    row = shrinkage(shrinkage_sums(g, rounded))
    # Pythagoras: the two parts of g~ are orthogonal
    assert row.norm_ratio.item() ** 2 == pytest.approx(row.projection.item() ** 2 + row.noise_to_signal.item() ** 2)
    if rounding == "toward_zero":
        slack = 1 + 1e-12  # of the sums' own rounding: of one entry both are the same number, computed in two ways
        assert 0 <= row.projection.item() <= slack * row.norm_ratio.item() <= slack**2
    scaled = shrinkage(shrinkage_sums(g, 0.25 * g))
    assert scaled.projection.item() == pytest.approx(0.25)
    assert scaled.noise_to_signal.item() == pytest.approx(0, abs=1e-7)


def test_layouts_and_chunks_do_not_matter():
    g = torch.randn(2, 3, 300, 101)
    rounded = quantize(g, "e4m3")
    expected = shrinkage_sums(g.double(), rounded.double())
    last = torch.channels_last
    for one, other in ((g.to(memory_format=last), rounded), (g.to(memory_format=last), rounded.to(memory_format=last))):
        torch.testing.assert_close(shrinkage_sums(one, other), expected, rtol=1e-12, atol=0)
    wide = torch.zeros(2, 3, 300, 202)[..., ::2].copy_(g)
    torch.testing.assert_close(
        shrinkage_sums(wide, torch.zeros_like(wide).copy_(rounded)), expected, rtol=1e-12, atol=0
    )


def test_schedule_capacity_and_tables():
    meter = ShrinkageMeter(every=3, capacity=2)
    assert [step for step in range(8) if meter.due(step)] == [0, 3, 6]
    assert ShrinkageMeter(every=lambda step: step == 5).due(5)
    for step in (0, 3, 6):
        meter.observe(step, {"layer": (torch.ones(2), torch.ones(2) * step)})
    assert [recorder.steps for recorder in meter._rows.recorders.values()] == [[6]]  # the capacity brought a flush
    table = meter.table()
    assert table["step"].to_pylist() == [0, 0, 3, 3, 6, 6]
    assert table["projection"].to_pylist() == [0, 0, 3, 3, 6, 6]
    assert str(table.schema.field("n").type) == "int64"


def test_kinds_and_layers_may_come_and_go():
    meter, one = ShrinkageMeter(), (torch.ones(2), torch.ones(2))
    for step in range(3):
        meter.observe(step, {"a": one} if step == 1 else {"a": one, "b": one})
        meter.observe(step, {"a": one}, kind="weights")
    rows = rows_of(meter)
    assert [row["step"] for row in rows] == [0] * 5 + [1] * 4 + [2] * 5
    found = [(row["step"], row["kind"], row["layer"]) for row in rows if row["layer"] != "(global)"]
    expected = [(step, kind, "a") for step in range(3) for kind in ("gradients", "weights")]
    assert sorted(found) == sorted([*expected, (0, "gradients", "b"), (2, "gradients", "b")])
    assert [layer for step, kind, layer in found if (step, kind) == (2, "gradients")] == ["a", "b"]


def measured(meter: ShrinkageMeter, steps: range) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        pair = torch.randn(2, 9, generator=generator).unbind()
        meter.observe(step, {"layer": (pair[0], pair[1])}, "e4m3")


@pytest.mark.parametrize("in_folder", [True, False])
def test_resumes_after_a_weights_only_load(in_folder, tmp_path: Path):
    whole = ShrinkageMeter()
    measured(whole, range(6))
    meter = ShrinkageMeter(folder=tmp_path if in_folder else None, capacity=2)
    measured(meter, range(3))
    file = io.BytesIO()
    torch.save(meter.state_dict(), file)
    file.seek(0)
    measured(meter, range(3, 5))  # lost: the run broke off after its checkpoint
    meter.flush()
    resumed = ShrinkageMeter(folder=tmp_path if in_folder else None, capacity=3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    measured(resumed, range(3, 6))
    assert resumed.table().equals(whole.table())
    if in_folder:
        assert read_table(tmp_path / "shrinkage.parquet").equals(whole.table())
        with pytest.raises(ValueError, match="of an earlier run or of another tracker"):
            measured(ShrinkageMeter(folder=tmp_path), range(4, 5))
        assert read_table(tmp_path / "shrinkage.parquet").equals(whole.table())
        other = ShrinkageMeter(folder=tmp_path, overwrite=True)  # a new run in the same folder
        measured(other, range(4, 5))
        assert set(other.table()["step"].to_pylist()) == {4}
    with pytest.raises(ValueError, match="not what a ShrinkageMeter saves"):
        resumed.load_state_dict({"rows": []})


def test_wrong_arguments():
    for setting in ({"every": 0}, {"every": True}, {"capacity": 0}, {"capacity": 1.5}):
        with pytest.raises((TypeError, ValueError), match="whole number of 1 or more"):
            ShrinkageMeter(**setting)
    with pytest.raises(ValueError, match="one shape"):
        ShrinkageMeter().observe(0, {"layer": (torch.ones(2), torch.ones(3))})
    with pytest.raises(ValueError, match="e4m33x"):
        ShrinkageMeter().observe(0, {"layer": (torch.ones(2), torch.ones(2))}, "e4m33x")


def _sharded(rank: int, world: int) -> list[float]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    import trimtab

    mesh = init_device_mesh("cpu", (world,))
    torch.manual_seed(0)
    weight = torch.nn.Parameter(distribute_tensor(torch.randn(5, 4), mesh, [Shard(0)]))
    weight.grad = distribute_tensor(torch.randn(5, 4) * 1e-2, mesh, [Shard(0)])
    optimizer = torch.optim.SGD([weight], lr=0.0)
    meter = ShrinkageMeter(every=1)
    trimtab.attach(optimizer, LowPrecision("e4m3", meter=meter))
    optimizer.step()
    row = rows_of(meter)[0]
    return [float(row[name]) for name in ("n", *QUANTITIES)]


def test_of_sharded_gradients_the_whole_is_measured():
    torch.manual_seed(0)
    torch.randn(5, 4)
    g = torch.randn(5, 4) * 1e-2
    expected = [20.0, *oracle(g, quantize(g, "e4m3"), 448.0).values()]
    for found in on_two_ranks(_sharded):
        assert found == pytest.approx(expected)

"""Moments against NumPy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.distributed import on_two_ranks
from trimtab.tensors import chunks as floor
from trimtab.tensors.moments import Moments, moments, pooled


def reference(tensors: list[torch.Tensor]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    arrays = [tensor.detach().double().numpy().reshape(-1) for tensor in tensors]
    return (
        np.array([array.mean() for array in arrays]),
        np.array([array.var() for array in arrays]),
        np.array([np.linalg.norm(array) for array in arrays]),
    )


def agree(found: Moments, tensors: list[torch.Tensor], rel: float = 1e-6) -> None:
    mean, variance, norm = reference(tensors)
    scale = np.sqrt(variance) + np.abs(mean)
    assert np.all(np.abs(found.mean.numpy() - mean) <= rel * scale)
    np.testing.assert_allclose(found.variance.numpy(), variance, rtol=rel, atol=1e-30)
    np.testing.assert_allclose(found.norm.numpy(), norm, rtol=rel, atol=1e-30)
    together = np.concatenate([tensor.detach().double().numpy().reshape(-1) for tensor in tensors])
    np.testing.assert_allclose(pooled(found).variance.item(), together.var(), rtol=rel)
    assert abs(pooled(found).mean.item() - together.mean()) <= rel * (together.std() + abs(together.mean()))
    assert pooled(found).number.item() == len(together)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1.0, 1e-3), (-1e-6, 1e-8), (3.0, 3.0)])
def test_equal_to_numpy(dtype: torch.dtype, mean: float, std: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = [(5, 7), (3, 4, 3, 3), (1,), (300_001,)]
    tensors = [
        (mean + std * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype) for shape in shapes
    ]
    agree(moments(tensors), tensors)


@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_mean_far_above_the_deviation_does_not_cancel(mean: float) -> None:
    values = (mean + torch.randn(10_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).float()
    agree(moments([values]), [values])
    naive = values.square().mean() - values.mean().square()  # what the test guards against
    assert abs(naive.item() - values.double().var(correction=0).item()) > 1e-3


@pytest.mark.parametrize("scale", [1e-44, 1e-30, 1e-18, 1e18, 1e30, 1e36])
def test_squares_beyond_float32(scale: float) -> None:
    values = (scale * torch.rand(500, generator=torch.Generator().manual_seed(4), dtype=torch.float64)).float()
    agree(moments([values, torch.zeros(3)]), [values, torch.zeros(3)])


@pytest.mark.parametrize("value", [0.1, -1.7e-30, 3e38])
def test_a_constant_has_no_deviation(value: float) -> None:
    tensors = [torch.full((size,), value) for size in (*range(1, 65), 300_001)]
    found = moments(tensors)
    assert found.std.tolist() == [0.0] * len(tensors)
    exact = torch.tensor(value).double().item()
    assert found.mean.tolist() == pytest.approx([exact] * len(tensors), rel=1e-15)
    assert pooled(found).std.item() <= 1e-15 * abs(exact)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.999])
@pytest.mark.parametrize("size", [100, 3_000, 262_144, 1_000_000])
def test_two_values_whose_rounding_adds_up(size: int, share: float) -> None:
    """Sign-like gradients: each partial sum is rounded the same way, so that the error of float32 grows with its length."""
    generator = torch.Generator().manual_seed(size)
    for _ in range(3):
        high = torch.rand(1, generator=generator)
        values = torch.where(torch.rand(size, generator=generator) < share, high, -high)
        agree(moments([values]), [values])


def test_layout_and_grouping_do_not_matter() -> None:
    picture = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(2))
    laid_out = picture.to(memory_format=torch.channels_last)
    sliced = torch.randn(6, 10)[:, ::2]
    agree(moments([laid_out, sliced.t(), picture]), [laid_out, sliced.t(), picture])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9), min_size=1, max_size=5))
def test_pooled_equals_the_joined_tensor(values: list[list[float]]) -> None:
    tensors = [torch.tensor(row, dtype=torch.float64) for row in values]
    joined = moments([torch.cat(tensors)])
    parts = pooled(moments(tensors))
    assert torch.allclose(parts.mean, joined.mean, rtol=1e-9, atol=1e-9)
    assert torch.allclose(parts.variance, joined.variance, rtol=1e-7, atol=1e-7)


def test_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    values = [torch.randn(1000), torch.randn(7), torch.randn(256)]
    whole = moments(values)
    monkeypatch.setattr(floor, "BATCH_ON_CPU", 64)
    for one, other in zip(moments(values), whole, strict=True):
        assert torch.allclose(one, other, rtol=1e-12, atol=1e-12)


def test_empty_and_not_finite() -> None:
    found = moments(
        [torch.zeros(0, 3), torch.tensor([1.0, float("nan")]), torch.tensor([float("inf"), 0.0]), torch.ones(2)]
    )
    assert found.number.tolist() == [0, 2, 2, 2]
    assert found.variance.isnan().tolist() == [True, True, True, False]
    assert found.norm[0] == 0
    assert not found.norm[1:3].isfinite().any()
    assert moments([]).number.shape == (0,)
    both = pooled(moments([torch.zeros(0), torch.tensor([1.0, 3.0])]))
    assert both.variance.item() == 1


def test_not_a_float_is_refused() -> None:
    with pytest.raises(TypeError, match="tensor 1 must be a dense real"):
        moments([torch.ones(2), torch.ones(2, dtype=torch.complex64)])


def _sharded(rank: int, world: int) -> list[list[float]]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (world,))
    generator = torch.Generator().manual_seed(3)
    whole = [5 + torch.randn(7, 3, generator=generator), torch.randn(1, 4, generator=generator)]
    parts = [distribute_tensor(whole[0], mesh, [Shard(0)]), distribute_tensor(whole[1], mesh, [Shard(0)])]
    plain = torch.randn(3, generator=generator)
    copied = distribute_tensor(whole[0], mesh, [Replicate()])
    tensors: list[Any] = [*parts, plain, copied]
    found = moments(tensors, tensors)
    expected = moments([*whole, plain, whole[0]])
    return [torch.stack(list(found)).flatten().tolist(), torch.stack(list(expected)).flatten().tolist()]


def test_two_processes_equal_one() -> None:
    for found, expected in on_two_ranks(_sharded):
        assert found == pytest.approx(expected, rel=1e-6)

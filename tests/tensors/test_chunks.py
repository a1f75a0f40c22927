"""Sums over chunks against NumPy, in both forms: the one that looks at values and the one that does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trimtab.observe.sums import COLUMNS, PLACE, Sums
from trimtab.tensors import chunks as floor

CHUNK = 512
TINY = 2.0**-14
BOTH = pytest.mark.parametrize("looks", [True, False])


def normal(size: int, mean: float = 0.0, std: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(size, generator=generator, dtype=torch.float64)


def agree(tensors: list[Tensor], looks: bool) -> None:
    dtype = torch.float64 if tensors[0].dtype == torch.float64 else torch.float32
    rel = 1e-6 if looks and dtype == torch.float32 else 1e-8
    found = Sums([tensor.numel() for tensor in tensors], dtype, looks=looks)(tensors, set(COLUMNS), TINY)
    for tensor, row in zip(tensors, found, strict=True):
        values = tensor.double().numpy()
        magnitudes = np.abs(values)
        want = {
            "total": values.sum(),
            "squares": np.square(values - values.mean()).sum(),
            "max_abs": magnitudes.max(),
            "zeros": (values == 0).sum(),
            "nan": 0,
            "inf": 0,
            "subnormal": ((magnitudes > 0) & (magnitudes < TINY)).sum(),
            "magnitude_total": magnitudes.sum(),
            "magnitude_squares": np.square(magnitudes - magnitudes.mean()).sum(),
        }
        for name in COLUMNS:
            scale = magnitudes.sum() if name == "total" else abs(want[name])
            assert abs(row[PLACE[name]].item() - want[name]) <= rel * scale, name


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_equal_to_numpy(looks: bool, dtype: torch.dtype) -> None:
    sizes = [1, 3, CHUNK - 1, CHUNK, CHUNK + 1, 5000]
    agree([normal(size, 0.3, 1.0, size).to(dtype) for size in sizes], looks)


@BOTH
def test_tensors_over_several_blocks(looks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "BATCH_ON_CPU", 2 * CHUNK)
    tensors = [normal(size, seed=size).float() for size in (10, 5 * CHUNK + 7, 300, 20, 2 * CHUNK)]
    assert len(Sums([tensor.numel() for tensor in tensors]).chunks.batches) > 4
    agree(tensors, looks)


@BOTH
@pytest.mark.parametrize("size", [4, 1000])
@pytest.mark.parametrize("mean", [1e2, 1e4, -1e6])
def test_mean_far_above_the_deviation(looks: bool, mean: float, size: int) -> None:
    agree([normal(size, mean, 1.0).float(), normal(5).float()], looks)


@BOTH
@pytest.mark.parametrize("scale", [1e-44, 1e-38, 1e-25, 1e-15, 1e15, 1e30, 1e37])
def test_squares_beyond_float32(looks: bool, scale: float) -> None:
    agree([normal(500, 0.0, scale).float(), normal(500).float()], looks)


@BOTH
def test_mixed_scales_within_one_tensor(looks: bool) -> None:
    agree([torch.cat([normal(400, 0.0, 1e-25), normal(400, 1e3), torch.zeros(300)]).float()], looks)


@BOTH
def test_not_finite_touches_its_own_tensor_only(looks: bool) -> None:
    tensors = [
        normal(300).float(),
        torch.tensor([0.0, float("nan"), float("inf"), -float("inf"), 1e-6]),
        torch.zeros(2),
    ]
    found = Sums([300, 5, 2], looks=looks)(tensors, set(COLUMNS), TINY)
    row = dict(zip(COLUMNS, found[1].tolist(), strict=True))
    assert np.isnan([row["total"], row["squares"], row["max_abs"]]).all()
    assert (row["zeros"], row["nan"], row["inf"], row["subnormal"]) == (1, 1, 2, 1)
    assert found[[0, 2]].isfinite().all()
    assert found[:, PLACE["nan"]].tolist() == [0, 1, 0]
    infinite = Sums([2], looks=looks)([torch.tensor([1.0, -float("inf")])], set(COLUMNS))
    assert infinite[0, PLACE["max_abs"]] == float("inf")
    assert not infinite[0, PLACE["squares"]].isfinite()


@BOTH
def test_nothing_at_all_and_empty_tensors(looks: bool) -> None:
    found = Sums([0, 2, 0], looks=looks)([torch.ones(0), torch.tensor([1.0, 3.0]), torch.ones(0)], set(COLUMNS))
    assert found[:, PLACE["total"]].nan_to_num().tolist() == [0, 4, 0]
    assert found[:, PLACE["max_abs"]].tolist() == [0, 3, 0]
    assert found[:, PLACE["zeros"]].tolist() == [0, 0, 0]


@BOTH
def test_below(looks: bool) -> None:
    tensors = [normal(1000).float(), normal(7).float(), torch.zeros(3)]
    limits = torch.tensor([0.5, 1.0, float("nan")], dtype=torch.float64)
    found = Sums([1000, 7, 3], looks=looks).below(tensors, limits)
    assert found[:2].tolist() == [(tensors[0].abs() < 0.5).sum().item(), (tensors[1].abs() < 1).sum().item()]
    assert found[2].isnan()


def test_only_what_is_wanted() -> None:
    found = Sums([3])([torch.tensor([0.0, 1.0, 1e-6])], {"max_abs"}, TINY)
    assert found[0, PLACE["max_abs"]] == 1
    assert found[0, PLACE["subnormal"]] == 0
    subnormal = Sums([3])([torch.tensor([0.0, 1.0, 1e-6])], {"subnormal"}, TINY)
    assert subnormal[0, PLACE["subnormal"]] == 1


@BOTH
@settings(max_examples=40, deadline=None)
@given(
    lists=st.lists(
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9),
        min_size=1,
        max_size=4,
    )
)
def test_any_numbers(looks: bool, lists: list[list[float]]) -> None:
    tensors = [torch.tensor(row, dtype=torch.float32) for row in lists]
    found = Sums([len(row) for row in lists], looks=looks)(tensors, set(COLUMNS), TINY)
    for tensor, row in zip(tensors, found, strict=True):
        values = tensor.double().numpy()
        assert row[PLACE["max_abs"]].item() == np.abs(values).max()
        assert row[PLACE["zeros"]].item() == (values == 0).sum()
        spread = np.square(values - values.mean()).sum()
        # float32 resolves deviations to its epsilon times the largest value
        resolution = len(values) * (3e-7 * np.abs(values).max()) ** 2
        assert row[PLACE["squares"]].item() == pytest.approx(spread, rel=1e-5, abs=resolution + 1e-95)

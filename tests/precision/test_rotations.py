"""Hadamard transforms and MS-EDEN."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from scipy.linalg import hadamard

from tests.precision.references import e2m1, e4m3
from trimtab.precision import NVFP4, Hadamard, MSEden, ms_eden, quantize
from trimtab.precision.nvfp4 import HEADROOM_SCALE


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", [2, 16, 32, 128, 512])
@pytest.mark.parametrize("dim", [-1, 0, 1])
def test_it_is_the_matrix(size, dim):
    shape = [3, 4, 5]
    shape[dim] = 2 * size
    x = torch.randn(shape, generator=seeded(), dtype=torch.float64)
    turn = Hadamard(size, seed=3, dim=dim)
    matrix = torch.from_numpy(hadamard(size)).double() / math.sqrt(size) * turn.signs(x)
    blocks = x.movedim(dim, -1).unflatten(-1, (2, size))
    expected = (blocks @ matrix.T).flatten(-2).movedim(-1, dim)
    torch.testing.assert_close(turn(x), expected, rtol=0, atol=1e-13)
    torch.testing.assert_close(turn.inverse(expected), x, rtol=0, atol=1e-13)
    assert bool((turn.signs(x).abs() == 1).all())


def test_products_along_the_turned_dimension_stay():
    a, b = torch.randn(20, 64, generator=seeded(1)), torch.randn(7, 64, generator=seeded(2))
    for size in (16, 32, 64):
        turn = Hadamard(size)
        torch.testing.assert_close(turn(a) @ turn(b).T, a @ b.T, rtol=0, atol=1e-4)
        assert not torch.allclose(turn(a) @ Hadamard(size, seed=1)(b).T, a @ b.T, atol=1.0)
    assert Hadamard(16)(a.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(
        Hadamard(16)(a.bfloat16()), Hadamard(16)(a.bfloat16().float()).bfloat16(), rtol=0, atol=0
    )


def test_outliers_are_spread_and_nothing_dies():
    x = torch.randn(512, 128, generator=seeded(12))
    x = torch.where(torch.rand(x.shape, generator=seeded(13)) < 0.01, 30 * x, x)
    turn = Hadamard(128)
    assert float(turn(x).abs().max()) < 0.5 * float(x.abs().max())
    plain, turned = quantize(x, "e2m1", scaling=NVFP4()), turn.inverse(quantize(turn(x), "e2m1", scaling=NVFP4()))
    assert float((plain == 0).float().mean()) > 0.1
    assert float((turned == 0).float().mean()) < 1e-3


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Hadamard(48), ValueError, "must be a power of two, got 48; the nearest are 32 and 64"),
        (lambda: Hadamard(1), ValueError, "2 or more, got 1"),
        (
            lambda: Hadamard(16)(torch.ones(3, 40)),
            ValueError,
            r"in blocks of 16 needs a length that they divide, got 40",
        ),
        (lambda: Hadamard(16)(torch.ones(16, dtype=torch.int32)), TypeError, "got torch.int32"),
        (lambda: MSEden(128, block=24), ValueError, "blocks of 24 must divide a group of 128"),
        (lambda: MSEden(rows=16), ValueError, "rows 1, got 'absmax', 16"),
        (
            lambda: quantize(torch.ones(128), "e2m1", "stochastic", scaling=MSEden()),
            ValueError,
            "must be 'nearest', got 'stoch",
        ),
    ],
)
def test_bad_input(make, error, message):
    with pytest.raises(error, match=message):
        make()


def eden(x: np.ndarray, block: int, size: int, room: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NumPy: rounded entries of the groups, wanted scales before they are rounded at random, 1 / S."""
    f = np.float32
    groups = x.reshape(-1, size // block, block)
    whole = f(HEADROOM_SCALE * 6 / room) / f(np.abs(x).max())
    stored = e4m3(np.abs(groups).max(2, keepdims=True) * (whole * f(1 / (6 / room))))
    exact = groups * (f(1) / (stored * (f(1) / whole)))
    rounded = e2m1(exact)
    weight = stored.astype(np.float64) ** 2
    up = (exact.astype(np.float64) ** 2 * weight).sum((1, 2), keepdims=True)
    return rounded, stored * (up / (exact * rounded * weight).sum((1, 2), keepdims=True)), f(1) / whole


def test_ms_eden_is_its_formula():
    x = torch.randn(300, 128, generator=seeded(3)) * torch.exp2(
        torch.randint(-3, 3, (300, 1), generator=seeded(4)).float()
    )
    rounded, wanted, back = eden(x.numpy(), 16, 128, 17 / 16 * 0.93)
    got = quantize(x, "e2m1", scaling=MSEden(), generator=seeded(5)).view(300, 8, 16)
    scales = (got.double().numpy() / back * rounded).sum(2, keepdims=True) / (rounded**2).sum(2, keepdims=True)
    np.testing.assert_allclose(got.numpy(), rounded * scales * back, rtol=1e-5, atol=1e-7)
    # each is one of the two neighbours in e4m3
    table = np.arange(127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
    nearest = np.abs(scales - table).min(-1)
    assert float(nearest.max()) < 1e-3
    at = np.searchsorted(table, wanted, "right")
    low, high = table[at - 1], table[at]
    assert bool(((scales > low - 1e-3) & (scales < high + 1e-3)).all())
    assert abs(float(((scales - low) / (high - low) - (wanted - low) / (high - low)).mean())) < 4 * 0.5 / math.sqrt(
        2400
    )


@pytest.mark.parametrize("outliers", [False, True])
def test_ms_eden_is_unbiased_along_the_vector_and_halves_the_error(outliers):
    """10^5 draws of rotation and scales: 500 rotations of 200 vectors."""
    x = torch.randn(200, 128, generator=seeded(6))
    if outliers:
        x = torch.where(torch.rand(x.shape, generator=seeded(7)) < 0.01, 30 * x, x)
    projections, errors, noise = [], [], seeded(8)
    for seed in range(500):
        rounded = ms_eden(x, Hadamard(128, seed=seed), noise)
        projections.append((rounded * x).sum(1) / x.square().sum(1) - 1)
        errors.append(float((rounded - x).square().sum()))
    drawn = torch.stack(projections)
    assert abs(float(drawn.mean() / (drawn.std() / math.sqrt(drawn.numel())))) < 4
    turn = Hadamard(128)
    other = turn.inverse(quantize(turn(x), "e2m1", "stochastic", scaling=NVFP4(scale_rounding="up"), generator=noise))
    assert sum(errors) / 500 < 0.55 * float((other - x).square().sum())


def test_without_the_correction_it_shrinks():
    x = torch.randn(4096, 128, generator=seeded(9))
    plain = quantize(x, "e2m1", scaling=NVFP4())
    corrected = quantize(x, "e2m1", scaling=MSEden(), generator=seeded(10))
    assert float((plain * x).sum() / x.square().sum()) < 0.997
    assert abs(float((corrected * x).sum() / x.square().sum()) - 1) < 3e-4


def test_draws_are_the_generators():
    x = torch.randn(64, 128, generator=seeded(11))
    one = quantize(x, "e2m1", scaling=MSEden(), generator=seeded(1))
    assert torch.equal(one, quantize(x, "e2m1", scaling=MSEden(), generator=seeded(1)))
    assert not torch.equal(one, quantize(x, "e2m1", scaling=MSEden(), generator=seeded(2)))

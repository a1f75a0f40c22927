"""Directed rounding, ties away from zero and few random bits against gfloat; what stochastic rounding is unbiased under."""

from __future__ import annotations

import itertools
import math
import warnings

import gfloat
import numpy as np
import pytest
import torch
from gfloat import RoundMode

from tests.precision import references
from tests.precision.inputs import all_bf16, hard_cases, random_bits, same
from tests.precision.test_format import GFLOAT
from trimtab.precision import MX, NVFP4, Block, named, quantize

MODES = {"up": RoundMode.TowardPositive, "down": RoundMode.TowardNegative, "ties_away": RoundMode.TiesToAway}
DRAWS = 100_000


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("name", GFLOAT)
def test_every_direction_is_gfloat(name, rounding):
    format = named(name)
    x = torch.cat([all_bf16(), hard_cases(format), random_bits()[:100_000]])
    x = x[~x.isnan()]
    for policy in ("saturate", "inf") if format.infinities else ("saturate",):
        expected = gfloat.round_ndarray(GFLOAT[name], x.double().numpy(), rnd=MODES[rounding], sat=policy == "saturate")
        agree = same(quantize(x, format, rounding, policy), torch.from_numpy(expected).float())
        assert bool(agree.all()), (policy, x[~agree][:5])


@pytest.mark.parametrize("rounding", MODES)
@pytest.mark.parametrize("precision", [1, 3])
def test_p3109_by_name(precision, rounding):
    name = f"binary8p{precision}"
    table = gfloat.formats.format_info_p3109(8, precision)
    assert named(name).max == table.max
    values = named(name).values()
    x = torch.cat([(values[1:] + values[:-1]) / 2, values, all_bf16().double()]).float()
    x = x[x.isfinite()]
    expected = gfloat.round_ndarray(table, x.double().numpy(), rnd=MODES[rounding], sat=True)
    assert bool(same(quantize(x, name, rounding), torch.from_numpy(expected).float()).all())


@pytest.mark.parametrize("rounding", ["up", "down", "ties_away"])
@pytest.mark.parametrize("name", ["e5m2", "e4m3", "e2m1", "int4"])
def test_raise_refuses_exactly_where_nan_marks(name, rounding):
    format = named(name)
    near = torch.cat([torch.linspace(0.95, 2.1, 60), torch.tensor([1.0])]) * format.max
    for x in torch.cat([near, -near]).split(1):
        if bool(quantize(x, format, rounding, "nan").isnan()):
            with pytest.raises(ValueError, match="overflow='raise'"):
                quantize(x, format, rounding, "raise")
        else:
            quantize(x, format, rounding, "raise")


@pytest.mark.parametrize("bits", [1, 2, 5, 8])
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "bf16"])
def test_few_random_bits_are_gfloats_fast_form(name, bits):
    """The share that goes up is that of gfloat over all 2^bits draws."""
    format = named(name)
    step = format.smallest_subnormal if name != "bf16" else 2.0**-7
    base = 0.0 if name != "bf16" else 1.0
    fractions = [0.0, 0.1, 0.25, 0.37, 0.5, 0.5 + 2.0 ** -(bits + 1), 0.9, 0.999]
    for fraction in fractions:
        point = base + fraction * step
        share = np.mean(
            [
                gfloat.round_float(
                    GFLOAT[name], float(np.float32(point)), rnd=RoundMode.StochasticFast, srbits=k, srnumbits=bits
                )
                > base
                for k in range(2**bits)
            ]
        )
        for dtype in (torch.float32, torch.float64):
            x = torch.full((20_000,), np.float32(point), dtype=dtype)
            drawn = quantize(x, format, "stochastic", generator=seeded(2), random_bits=bits) > base
            error = math.sqrt(max(share * (1 - share), 0) / 20_000)
            assert abs(float(drawn.double().mean()) - share) <= 4 * error, (fraction, share)


def test_bad_bits():
    for bits, error in ((0, ValueError), (25, ValueError), (1.5, TypeError)):
        with pytest.raises(error, match=r"random_bits must be a whole number in 1\.\.24"):
            quantize(torch.ones(2), "e4m3", "stochastic", random_bits=bits)
    with pytest.raises(ValueError, match="random_bits=8 is about stochastic rounding, got rounding='nearest'"):
        quantize(torch.ones(2), "e4m3", random_bits=8)


def vector(kind: str) -> torch.Tensor:
    """Rows of 16: normal numbers, 128 of them, or 256 with one in a hundred 30 times as large."""
    x = torch.randn(128 if kind == "normal" else 256, generator=seeded(3))
    large = torch.rand(len(x), generator=seeded(9)) < 0.01
    assert kind == "normal" or 2 <= int(large.sum()) <= 3
    return (torch.where(large, 30 * x, x) if kind == "outliers" else x).view(-1, 16)


UNBIASED = [
    MX(unbiased=True), MX(rule="even", unbiased=True), MX(rule="ceil"), MX(rule="power_of_two"), Block(16), Block(8, rows=4),
    NVFP4(scale_rounding="up"), NVFP4(rows=16, scale_rounding="up"),
]  # fmt: skip


@pytest.mark.parametrize("scaling", UNBIASED, ids=str)
@pytest.mark.parametrize("kind", ["normal", "outliers"])
def test_unbiased_where_claimed(scaling, kind):
    """10^5 draws of each entry: their mean lies within 4 standard errors of it, and the whole's projection does."""
    x, generator = vector(kind), seeded(4)
    assert scaling.biases is None
    total, squares, projections = torch.zeros_like(x).double(), torch.zeros_like(x).double(), []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(DRAWS // 1000):
            # copies side by side share the blocks' scales but not the draws
            many = x.expand(1000, *x.shape).contiguous()
            drawn = quantize(many, "e2m1", "stochastic", scaling=scaling, generator=generator).double()
            total += drawn.sum(0)
            squares += drawn.square().sum(0)
            projections.append((drawn * x.double()).sum((1, 2)) / x.double().square().sum())
    mean = total / DRAWS
    error = ((squares / DRAWS - mean.square()).clamp(min=0) / DRAWS).sqrt()
    z = (mean - x.double()).abs() / (error + 1e-7 * x.abs())
    assert float(z.max()) < 4.5  # the largest of 128, or 256
    assert float(z.square().mean().sqrt()) < 1.3
    together = torch.cat(projections)
    assert abs(float((together.mean() - 1) / (together.std() / math.sqrt(DRAWS) + 1e-8))) < 4


@pytest.mark.parametrize("scaling", [NVFP4(), NVFP4(4, rows=4), MX()], ids=str)
@pytest.mark.parametrize("kind", ["normal", "outliers"])
def test_biased_where_listed_and_by_what_is_predicted(scaling, kind):
    """The mean is x clamped to what its block's scale reaches."""
    x, generator = vector(kind), seeded(6)
    assert scaling.biases is not None
    many = x.expand(DRAWS, *x.shape).contiguous()
    with pytest.warns(UserWarning, match="stochastic rounding is biased under"):
        drawn = quantize(many, "e2m1", "stochastic", scaling=scaling, generator=generator)
    rows = scaling.grouped(scaling.lines(x))
    scales = scaling.of_rows(rows, named("e2m1"), torch.float32, scaling.of_tensor(x, named("e2m1")))
    limits = scaling.ungrouped((scales.decode * 6).expand_as(rows).contiguous(), scaling.lines(x).shape).reshape(
        x.shape
    )
    predicted = torch.minimum(torch.maximum(x, -limits), limits).double()
    error = drawn.double().std(0) / math.sqrt(DRAWS)
    z = (drawn.double().mean(0) - predicted).abs() / (error + 1e-6 * x.abs())
    assert float(z.max()) < 4.5
    assert bool((predicted != x).any())
    bias = float((predicted * x).sum() / x.double().square().sum())
    assert bias < 0.9995


def test_the_bias_of_nvfp4_is_the_one_measured_elsewhere():
    """2^20 numbers: projections of stochastic rounding, plain and with the larger scale."""
    x = torch.randn(1 << 20, generator=seeded(7))
    outliers = torch.where(torch.rand(1 << 20, generator=seeded(8)) < 0.01, 30 * x, x)
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for (kind, y), (name, scaling) in itertools.product(
            (("normal", x), ("outliers", outliers)),
            (("nvfp4", NVFP4()), ("up", NVFP4(scale_rounding="up")), ("floor", MX()), ("3/4", MX(unbiased=True))),
        ):
            rounded = quantize(y, "e2m1", "stochastic", scaling=scaling, generator=seeded(9))
            found[kind, name] = float((rounded.double() * y).sum() / y.double().square().sum())
    assert found["normal", "nvfp4"] == pytest.approx(0.9966, abs=1e-3)
    assert found["outliers", "nvfp4"] == pytest.approx(0.989, abs=2e-3)
    assert found["normal", "floor"] == pytest.approx(0.989, abs=1e-3)
    assert found["outliers", "floor"] == pytest.approx(0.953, abs=3e-3)
    for name in ("up", "3/4"):
        assert found["normal", name] == pytest.approx(1, abs=7e-4)
        assert found["outliers", name] == pytest.approx(1, abs=4e-3)


def test_room_is_made_between_scaling_and_rounding():
    """MXFP4 of arXiv 2502.20586 against NumPy, with extreme draws: the scale is that of the unscaled block."""
    x = torch.randn(1 << 15, 32, generator=seeded(10)) * torch.exp2(torch.randint(-60, 60, (1 << 15, 1)).float())
    scaling = MX(unbiased=True)
    low, high = (references.mxfp4_unbiased(x.numpy(), np.float64(u)) for u in (1 - 1e-9, 0.0))
    drawn = quantize(x, "e2m1", "stochastic", scaling=scaling, generator=seeded(11)).numpy()
    assert bool(((drawn == low) | (drawn == high)).all())
    assert 0.3 < float((drawn == high).mean()) < 0.7
    assert not np.array_equal(scaling.scales(x, "e2m1").numpy(), MX().scales(0.75 * x, "e2m1").numpy() / 0.75)


def test_random_words_serve_any_number_of_elements():
    """More than one run of the lanes: runs and halves of a run are uncorrelated, each uniform."""
    x = torch.full((1 << 19,), 0.2)
    up = (quantize(x, "e2m1", "stochastic", generator=seeded(12)) > 0).double()
    assert abs(float(up.mean()) - 0.4) < 4 * math.sqrt(0.24 / len(x))
    parts = up.view(8, 1 << 16) - 0.4
    for one, other in itertools.combinations(parts, 2):
        assert abs(float((one * other).mean())) < 4.5 * 0.24 / math.sqrt(1 << 16)
    shifted = (up[:-1] - 0.4) * (up[1:] - 0.4)
    assert abs(float(shifted.mean())) < 4 * 0.24 / math.sqrt(len(x))

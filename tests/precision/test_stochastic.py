"""Stochastic rounding by statistics, seeds and layouts."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from tests.precision.inputs import same
from trimtab.precision import MX, Block, Format, PerChannel, PerTensor, StraightThrough, named, quantize

DRAWS = 100_000
FORMATS = ["fp16", "bf16", "e4m3", "e5m2", "e4m3fnuz", "e2m1", "int4", "e3m4"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def grid(format: Format) -> list[float]:
    """Numbers between neighbours: among the subnormals, around the smallest normal, in the middle, near the top."""
    small, top = format.smallest_subnormal, math.ldexp(1.0, format.max_exponent)
    points = [0.003 * small, 0.25 * small, 0.9 * small, 1.5 * small, 2.7 * small]
    if format.exponent:
        points += [1.03 * format.smallest_normal, -1.3 * format.smallest_normal, 1.01, -1.77]
    return [*points, -0.97 * top, 1.02 * top]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", FORMATS)
def test_mean_and_variance(name, dtype):
    format, generator = named(name), seeded(4)
    for point in grid(format):
        x = torch.full((DRAWS,), point, dtype=dtype)
        drawn = quantize(x, format, rounding="stochastic", generator=generator).double()
        exact = float(x[0])
        if abs(exact) > format.max:
            continue
        step = math.ldexp(1.0, max(math.frexp(exact)[1] - 1, format.min_exponent) - format.mantissa)
        low = math.floor(exact / step)
        part = exact / step - low
        assert set(((drawn / step) - low).tolist()) <= {0.0, 1.0}
        variance = part * (1 - part) * step**2
        if variance == 0:
            assert bool((drawn == exact).all())
            continue
        deviation = abs(float(drawn.mean()) - exact)
        assert deviation < 4 * math.sqrt(variance / DRAWS), (point, deviation)
        # the sample variance of a Bernoulli variable: its own standard error, and the mean's
        fourth = part * (1 - part) * (1 - 3 * part * (1 - part)) * step**4
        error = math.sqrt(max(fourth - variance**2, 0) / DRAWS) + 16 * variance / DRAWS
        assert abs(float(drawn.var()) - variance) < 4 * error + 1e-12 * variance, point


def test_rare_roundings_up_are_not_lost():
    # a fraction far below the resolution of `floor(x / step + u)` in float32 near the format's precision
    x = torch.full((1 << 22,), named("fp16").smallest_subnormal * 1e-5)
    up = int((quantize(x, "fp16", rounding="stochastic", generator=seeded()) > 0).sum())
    assert abs(up - 41.9) < 4 * math.sqrt(41.9)


@pytest.mark.parametrize("name", FORMATS)
def test_exact_on_the_numbers_of_the_format(name):
    values = named(name).values().float()
    values = torch.cat([values, -values[1:]])
    for seed in range(20):
        assert bool(same(quantize(values, name, rounding="stochastic", generator=seeded(seed)), values).all())


def test_stays_within_the_neighbours_and_keeps_nan_infinity_and_signs():
    x = torch.randn(100_000, generator=seeded(1)) * torch.exp2(torch.randint(-20, 12, (100_000,), generator=seeded(2)))
    toward = quantize(x, "e4m3", rounding="toward_zero")
    drawn = quantize(x, "e4m3", rounding="stochastic", generator=seeded(3))
    away = -quantize(
        -toward.abs().nextafter(torch.tensor(torch.inf)), "e4m3"
    )  # of the same binade or the number itself
    assert bool((drawn.abs() >= toward.abs()).all())
    assert bool((drawn.abs() <= 448).all())
    assert bool((torch.signbit(drawn) == torch.signbit(x)).all())
    assert bool((away >= toward.abs()).all())
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, -1e-30])
    got = quantize(special, "e5m2", rounding="stochastic", overflow="inf", generator=seeded())
    assert bool(same(got, torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, -0.0])).all())


def test_overflow_policies_above_the_largest_number():
    x = torch.full((10_000,), 464.0)  # halfway between 448 and the 480 that e4m3 lacks
    for policy, marked in (("saturate", False), ("nan", True)):
        drawn = quantize(x, "e4m3", rounding="stochastic", overflow=policy, generator=seeded())
        assert set(drawn[~drawn.isnan()].tolist()) == {448.0}
        if marked:
            assert abs(float(drawn.isnan().float().mean()) - 0.5) < 4 * 0.005
        else:
            assert not bool(drawn.isnan().any())
    with pytest.raises(ValueError, match="overflow='raise'"):
        quantize(torch.tensor([448.1]), "e4m3", rounding="stochastic", overflow="raise")
    assert float(quantize(torch.tensor([448.0]), "e4m3", rounding="stochastic", overflow="raise")) == 448


def test_seeds_and_the_global_generator():
    x = torch.randn(10_001, generator=seeded(5))
    first = quantize(x, "e2m1", rounding="stochastic", generator=seeded(6))
    assert torch.equal(first, quantize(x, "e2m1", rounding="stochastic", generator=seeded(6)))
    assert not torch.equal(first, quantize(x, "e2m1", rounding="stochastic", generator=seeded(7)))
    torch.manual_seed(8)
    before = torch.get_rng_state()
    quantize(x, "e2m1", rounding="stochastic", generator=seeded(6))
    assert torch.equal(before, torch.get_rng_state())
    default = quantize(x, "e2m1", rounding="stochastic")
    torch.manual_seed(8)
    assert torch.equal(default, quantize(x, "e2m1", rounding="stochastic"))


@pytest.mark.parametrize("scaling", [None, PerTensor(), PerChannel(), PerChannel(dim=1), Block(5), MX(dim=1)], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.filterwarnings("ignore:stochastic rounding is biased")
def test_layout_changes_nothing(scaling, rounding, monkeypatch):
    x = torch.randn(3, 7, 11, 13, generator=seeded(9))
    expected = quantize(x, "e2m1", rounding=rounding, scaling=scaling, generator=seeded(10))
    padded = torch.empty(3, 7, 11, 20)[..., 3:16].copy_(x)
    layouts = {
        "channels last": x.contiguous(memory_format=torch.channels_last),
        "transposed": x.transpose(0, 3).contiguous().transpose(0, 3),
        "part of a larger tensor": padded,
        "float64": x.double(),
    }
    for name, other in layouts.items():
        strides = other.stride()
        if name == "float64" and (rounding == "stochastic" or scaling is not None):
            continue  # other random numbers, other rounding of scales
        got = quantize(other, "e2m1", rounding=rounding, scaling=scaling, generator=seeded(10))
        assert torch.equal(got.float(), expected), name
        if name in ("channels last", "transposed"):
            assert got.stride() == strides
        inside = other.clone(memory_format=torch.preserve_format)
        result = quantize(inside, "e2m1", rounding=rounding, scaling=scaling, generator=seeded(10), out=inside)
        assert result is inside
        assert torch.equal(inside.float(), expected), name
    monkeypatch.setattr(sys.modules["trimtab.precision.quantize"], "CHUNK_CPU", 66)
    assert torch.equal(quantize(x, "e2m1", rounding=rounding, scaling=scaling, generator=seeded(10)), expected)


def test_module_resumes_where_it_stood():
    x = torch.randn(1000, generator=seeded(11))
    module = StraightThrough("e2m1", rounding="stochastic", seed=3)
    module(x)
    state = {name: value.clone() for name, value in module.state_dict().items()}
    expected = module(x)
    other = StraightThrough("e2m1", rounding="stochastic", seed=4)
    other.load_state_dict(state)
    assert torch.equal(other(x), expected)

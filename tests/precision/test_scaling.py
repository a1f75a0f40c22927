"""Scalings against their formulas, and MX against the published block rule in float64."""

from __future__ import annotations

import itertools
import math
import warnings

import numpy as np
import pytest
import torch

import trimtab
from tests.precision.inputs import random_bits, same
from trimtab.parameters import Rule
from trimtab.precision import MX, Block, LowPrecision, PerChannel, PerTensor, named, quantize

ELEMENTS = ["e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "int8"]


def block_rule(x: torch.Tensor, name: str, rule: str, size: int = 32) -> torch.Tensor:
    """Shared exponent from the block's largest magnitude, elements rounded with saturation: NumPy float64, blocks last."""
    format = named(name)
    blocks = x.double().numpy().reshape(-1, size)
    largest = np.abs(blocks).max(axis=1)
    fraction, exponent = np.frexp(largest)  # largest = fraction * 2^exponent, fraction in [0.5, 1)
    floor_log2 = np.where(largest > 0, exponent - 1, -126)
    if rule == "even":
        with np.errstate(divide="ignore", invalid="ignore"):
            step = np.exp2(floor_log2.astype(np.float64) - format.mantissa)
            rounded = np.floor(largest / step + 0.5) * step  # ties go up: the only one that matters lies below 2^(k+1)
        floor_log2 = np.where(largest > 0, np.frexp(rounded)[1] - 1, -126)
    top = format.max / 2.0 ** (math.frexp(format.max)[1] - 1)  # of the largest number, 1 to 2
    if rule == "power_of_two":  # the smallest power of two without overflow
        floor_log2 = floor_log2 + ((2 * fraction > top) & (largest > 0))
    if rule == "ceil":
        floor_log2 = floor_log2 + ((fraction > 0.5) & (largest > 0))
    implied = 6 if name == "int8" else 0  # MXINT8's elements are k / 64, here the whole numbers k
    shared = np.clip(floor_log2 - (math.frexp(format.max)[1] - 1), -127 - implied, 127 - implied)  # e8m0's own range
    scale = np.ldexp(1.0, shared)[:, None]
    scaled = blocks / scale
    _, element = np.frexp(scaled)
    step = np.ldexp(1.0, np.maximum(element - 1, format.min_exponent) - format.mantissa)
    rounded = np.clip(np.rint(scaled / step) * step, -format.max, format.max)
    return torch.from_numpy(rounded * scale).to(x.dtype).view(x.shape)


def blocks(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 32, generator=generator)
    if kind == "spread":
        return x * torch.exp2(torch.randint(-100, 100, (3000, 1), generator=generator).float())
    if kind == "spread within blocks":
        return x * torch.exp2(torch.randint(-60, 60, x.shape, generator=generator).float())
    if kind == "subnormal":
        x = x * 2.0 ** torch.randint(-149, -120, (3000, 1), generator=generator).float()
        assert bool((x.abs().amax(1) < 2.0**-126).any())
        return x
    if kind == "powers of two and their neighbours":
        power = torch.exp2(torch.randint(-120, 120, (3000, 1), generator=generator).float())
        near = [
            power.nextafter(torch.tensor(math.inf)),
            power.nextafter(torch.tensor(0.0)),
            power * 1.75,
            power * 1.875,
        ]
        near += [power * 1.9375, power * 1.96875]
        x = x.clamp(-0.4, 0.4) * power
        x[:, :1] = torch.cat([power, *near], 1).gather(1, torch.randint(0, 7, (3000, 1), generator=generator))
        return x
    if kind == "zeros":
        x[::2] = 0
        x[1::4, 3:] = -0.0
        return x
    x = random_bits()[: 3000 * 32].view(3000, 32)
    return x[x.isfinite().all(1) & (x.abs().amax(1) < 2.0**126)]


KINDS = ["normal", "spread", "spread within blocks", "subnormal", "powers of two and their neighbours", "zeros", "bits"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rule", ["floor", "even", "ceil"])
@pytest.mark.parametrize("name", ELEMENTS)
def test_mx_is_the_published_block_rule(name, rule, kind):
    x = blocks(kind)
    expected = block_rule(x, name, rule)
    if not named(name).signed_zero:
        expected = expected + 0.0
    actual = quantize(x, name, scaling=MX(rule=rule))
    agree = same(actual, expected)
    assert bool(agree.all()), (x[~agree][:4], actual[~agree][:4], expected[~agree][:4])
    assert bool((actual != x).any())


def projection(x: torch.Tensor, rounded: torch.Tensor) -> float:
    return float((rounded.double() * x.double()).sum() / x.double().square().sum())


def normal_shrinkage(up: int, size: int = 32) -> float:
    """E<Q(x), x> / E||x||^2 in closed form, x standard normal in blocks, Q fp4 with the scale 2^(floor(log2 A) - 2 + up).

    The block's exponent is k where all |x| < 2^(k+1) but not all |x| < 2^k, so with F(t) = P(|x| < t) and
    G_k(t) = E[x Q_k(x); |x| < t], a sum of differences of the normal density, it is
    sum over k of G_k(2^(k+1)) F(2^(k+1))^(size-1) - G_k(2^k) F(2^k)^(size-1).
    """
    values = named("e2m1").values().tolist()
    edges = [0.0, *[(low + high) / 2 for low, high in itertools.pairwise(values)], math.inf]

    def density(t: float) -> float:
        return math.exp(-t * t / 2) / math.sqrt(2 * math.pi)

    def below(t: float, scale: float) -> float:
        total = 0.0
        for value, (low, high) in zip(values, itertools.pairwise(edges), strict=True):
            low, high = low * scale, min(high * scale, t)
            total += 2 * value * scale * (density(low) - density(high)) if low < high else 0.0
        return total * math.erf(t / math.sqrt(2)) ** (size - 1)

    scales = [(2.0**k, 2.0 ** (k - 2 + up)) for k in range(-12, 7)]
    return sum(below(2 * low, scale) - below(low, scale) for low, scale in scales)


def test_the_floor_rule_shrinks_and_the_ceiling_rule_shrinks_less():
    # a million entries: the sampling error of the shrinkage is about 1e-4
    x = torch.randn(1 << 15, 32, generator=torch.Generator().manual_seed(0))
    shrinkage, error = {}, {}
    for rule in ("floor", "even", "ceil"):
        rounded = quantize(x, "e2m1", scaling=MX(rule=rule))
        shrinkage[rule] = projection(x, rounded)
        error[rule] = float((rounded - x).square().sum() / x.square().sum())
    floor, ceiling = normal_shrinkage(up=0), normal_shrinkage(up=1)
    assert floor == pytest.approx(0.98044, abs=1e-5)
    assert ceiling == pytest.approx(0.99264, abs=1e-5)
    assert shrinkage["floor"] == pytest.approx(floor, abs=5e-4)
    assert shrinkage["ceil"] == pytest.approx(ceiling, abs=5e-4)
    assert error["ceil"] > 1.4 * error["floor"]
    assert shrinkage["floor"] < shrinkage["even"] < shrinkage["ceil"]


@pytest.mark.parametrize("rule", ["absmax", "power_of_two", "floor", "even", "ceil"])
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "e3m0finite", "int4"])
def test_rules_are_their_formulas(name, rule):
    format = named(name)
    x = torch.cat([blocks("powers of two and their neighbours"), blocks("spread")]) * 1e-3
    x = x[(x.abs().amax(1) > 1e-30) & (x.abs().amax(1) < 1e30)]
    largest = x.abs().amax(1).double()
    scales = Block(32, rule=rule).scales(x, format)
    assert scales.dtype == torch.float32
    top = math.frexp(format.max)[1] - 1
    if rule == "absmax":
        assert torch.equal(scales, (largest.float() / format.max))
        return
    assert bool((torch.frexp(scales)[0] == 0.5).all())
    ratio = largest / scales.double()
    if rule == "power_of_two":
        assert bool((ratio <= format.max).all())
        assert bool((ratio * 2 > format.max).all())
    elif rule == "ceil":
        assert bool((ratio <= 2.0**top).all())
        assert bool((ratio > 2.0 ** (top - 1)).all())
    elif rule == "floor":
        assert bool((ratio >= 2.0**top).all())
        assert bool((ratio < 2.0 ** (top + 1)).all())
    else:
        tie = 2.0 ** (top + 1) * (1 - 2.0 ** -(format.mantissa + 2))
        assert bool((ratio < tie).all())
        assert bool((ratio >= tie / 2).all())


def test_absmax_reaches_the_largest_number():
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(1))
    for scaling, dims in ((PerTensor(), (0, 1)), (PerChannel(), (1,)), (PerChannel(dim=1), (0,))):
        largest = x.abs().amax(dims, keepdim=True)
        expected = quantize(x / (largest / 448), "e4m3") * (largest / 448)
        assert torch.equal(quantize(x, "e4m3", scaling=scaling), expected)


def test_blocks_that_do_not_divide_are_shorter_at_the_end():
    x = torch.randn(5, 37, generator=torch.Generator().manual_seed(2))
    for scaling in (Block(16), MX(size=16), Block(64), Block(1)):
        size = scaling.size
        parts = [quantize(part.contiguous(), "e2m1", scaling=scaling) for part in x.split(size, dim=1)]
        assert torch.equal(quantize(x, "e2m1", scaling=scaling), torch.cat(parts, 1))
        assert scaling.scales(x, "e2m1").shape == (5 * -(-37 // size),)
    column = type(scaling)(16, dim=0)
    assert torch.equal(quantize(x, "e2m1", scaling=column).t(), quantize(x.t(), "e2m1", scaling=Block(16)))


def test_nan_and_infinity_take_their_group_with_them():
    x = torch.ones(4, 32)
    x[1, 5], x[2, 7] = math.nan, math.inf
    for scaling in (MX(), Block(32), PerChannel()):
        lost = quantize(x, "e4m3", scaling=scaling).isnan()
        assert bool(lost[1:3].all())
        assert not bool(lost[[0, 3]].any())
        with pytest.raises(ValueError, match="x has NaN"):
            quantize(x, "e4m3", scaling=scaling, overflow="raise")
    assert bool(quantize(x, "e4m3", scaling=PerTensor()).isnan().all())


def test_overflow_after_scaling():
    x = torch.full((32,), 1.99)
    assert float(quantize(x, "e2m1", scaling=MX())[0]) == 1.5
    assert bool(quantize(x, "e2m1", scaling=MX(), overflow="nan").isnan().all())
    assert float(quantize(x, "e2m1", scaling=MX(rule="ceil"), overflow="nan")[0]) == 2.0
    with pytest.raises(ValueError, match=r"up to 7\.96 after scaling, above the largest number of format 'e2m1', 6"):
        quantize(x, "e2m1", scaling=MX(), overflow="raise")
    for scaling in (PerTensor(), Block(rule="power_of_two"), MX(rule="ceil")):
        assert bool(quantize(x, "e2m1", scaling=scaling, overflow="raise").isfinite().all())


def test_ends_of_the_carrier():
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        limits = torch.finfo(dtype)
        for scaling in (MX(), MX(rule="ceil"), PerTensor(), PerTensor(rule="power_of_two"), Block()):
            if dtype == torch.float64 and isinstance(scaling, MX):
                continue  # e8m0 ends at 2^127
            x = torch.tensor([limits.max, -limits.max, limits.tiny, 0.0], dtype=dtype)
            rounded = quantize(x, "e2m1", scaling=scaling)
            assert bool(rounded.isfinite().all()), (dtype, scaling)
            assert float(rounded[0]) >= 0.7 * limits.max
            smallest = quantize(x[2:], "e2m1", scaling=scaling)
            assert float(smallest[0]) == limits.tiny or dtype != torch.float32


def mxint8(x: torch.Tensor) -> torch.Tensor:
    """OCP MX 1.0 in float64: elements k / 64, X = 2^floor(log2 absmax), between 2^-127 and 2^127, k to even, saturating."""
    wide = x.double().view(-1, 32)
    power = torch.frexp(wide.abs().amax(1, keepdim=True))[1] - 1
    scale = torch.exp2(power.clamp(-127, 127).double())
    return ((wide / scale * 64).round().clamp(-127, 127) / 64 * scale).view(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mxint8_keeps_the_low_range_of_the_specification(dtype):
    generator = torch.Generator().manual_seed(4)
    powers = torch.arange(-135, 128, dtype=dtype).clamp(max=126)[:, None]
    x = torch.exp2(powers) * torch.randn(263, 32, generator=generator, dtype=dtype).clamp(-1.9, 1.9)
    assert torch.equal(quantize(x, "int8", scaling=MX()).double(), mxint8(x).to(dtype).double())
    a = 2.0**-124
    kept = torch.tensor([a, a * 33 / 64, a * 5 / 64] + [0.0] * 29)
    assert torch.equal(quantize(kept, "int8", scaling=MX()), kept)
    assert MX().scales(torch.zeros(32), "int8").tolist() == [2.0**-133]
    assert MX().scales(torch.full((32,), 2.0**127), "int8").tolist() == [2.0**121]


@pytest.fixture
def flushing():
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush subnormal numbers")
    yield
    torch.set_flush_denormal(False)


NORMAL = 2.0**-126
FLUSHED = [0.0, NORMAL, -1.3 * NORMAL, 1.0, -2.7e-3, 3e38, 0.4 * NORMAL]


@pytest.mark.parametrize("scaling", [None, MX(), MX(rule="ceil"), Block(), PerTensor(rule="power_of_two")])
@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "stochastic"])
@pytest.mark.parametrize("name", ["bf16", "e8m3", "e4m3", "int8"])
@pytest.mark.filterwarnings("ignore:stochastic rounding is biased")
def test_flushed_subnormals_leave_no_nan(name, rounding, scaling, flushing):
    torch.set_flush_denormal(False)
    groups = [torch.zeros(32), torch.full((32,), NORMAL), torch.tensor(FLUSHED[:3] + [0.0] * 29), torch.ones(32)]
    groups.append(torch.tensor([*FLUSHED, *[0.0] * 25]))
    expected = [quantize(x, name, rounding, "saturate", scaling, torch.Generator().manual_seed(1)) for x in groups]
    torch.set_flush_denormal(True)
    for x, wanted in zip(groups, expected, strict=True):
        for policy in ("saturate", "nan"):
            found = quantize(x, name, rounding, policy, scaling, torch.Generator().manual_seed(1))
            finite = found.isfinite() if policy == "saturate" else found.isfinite() | (x.abs() > 1)
            assert bool(finite.all())
        if rounding != "stochastic":
            normal = wanted.abs() >= NORMAL
            found = quantize(x, name, rounding, "saturate", scaling)
            if name in ("bf16", "e8m3") and scaling == Block():  # no power of two; steps are taken in float64 here
                torch.testing.assert_close(found[normal], wanted[normal], rtol=2.0**-3, atol=0.0)
            else:
                assert torch.equal(found[normal], wanted[normal])
            assert bool((found[~normal] == 0).all())


@pytest.mark.parametrize("scaling", [MX(), Block(), PerChannel()])
def test_one_number_has_no_blocks_and_the_lever_names_it(scaling):
    with pytest.raises(ValueError, match=r"without dimensions \(one number\) has no channels or blocks; PerTensor\(\)"):
        quantize(torch.tensor(1.0), "e4m3", scaling=scaling)
    assert quantize(torch.tensor(3.0), "e4m3", scaling=PerTensor()).shape == ()
    net = torch.nn.Linear(2, 2)
    net.register_parameter("temperature", torch.nn.Parameter(torch.tensor(1.0)))
    lever = LowPrecision("e4m3", scaling=scaling, rule=Rule(min_ndim=0))
    with pytest.raises(ValueError, match=r"temperature, under .*PerTensor\(\) fits it, or leave it out by the rule"):
        trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), lever, model=net)


@pytest.mark.parametrize("rule", ["floor", "even", "ceil", "power_of_two"])
def test_stochastic_rounding_says_where_scales_bias_it(rule):
    x = torch.full((32,), 1.7).index_fill(0, torch.arange(1, 32), 0.3)
    scaling, biased = MX(rule=rule), rule in ("floor", "even")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        one = quantize(x, "e2m1", "stochastic", scaling=scaling)
        quantize(x, "e2m1", "nearest", scaling=scaling)
        many = torch.stack([quantize(x, "e2m1", "stochastic", scaling=scaling) for _ in range(400)])
    assert [one.category for one in seen] == ([UserWarning] * 401 if biased else [])
    assert all("biased under MX" in str(one.message) and one.filename == __file__ for one in seen)
    mean, error = many[:, 0].mean(), many[:, 0].std() / 20
    assert one.shape == x.shape
    assert (mean < 1.51) if biased else (mean - 1.7).abs() < 4 * error


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_carriers_scale_in_float32(dtype):
    x = torch.randn(64, 32, generator=torch.Generator().manual_seed(3)).to(dtype)
    for scaling in (MX(), Block(), PerTensor()):
        expected = quantize(x.float(), "e2m1", scaling=scaling).to(dtype)
        assert torch.equal(quantize(x, "e2m1", scaling=scaling), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PerTensor(rule="max"), r"rule must be one of 'absmax', .*'ceil', got 'max'"),
        (lambda: Block(0), "size of a block must be a whole number of 1 or more, got 0"),
        (lambda: Block(2.5), r"got 2\.5"),
        (lambda: MX(rule="absmax"), "an MX scale is a power of two"),
        (lambda: quantize(torch.ones(3, 4), "e4m3", scaling=Block(dim=2)), r"of shape \(3, 4\), got 2"),
        (lambda: quantize(torch.ones(3, 4), "e4m3", scaling=PerChannel(-3)), "got -3"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()

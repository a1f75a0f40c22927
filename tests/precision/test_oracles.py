"""`quantize` bit for bit against ml_dtypes, gfloat and torch, on all bfloat16 patterns and a million random float32.

Where a peer's policy is another, it is written down here and asserted.
"""

from __future__ import annotations

import gfloat
import numpy as np
import pytest
import torch
from gfloat import RoundMode

from tests.precision.inputs import all_bf16, hard_cases, random_bits, same
from tests.precision.test_format import GFLOAT, ML_DTYPES, p3109
from trimtab.precision import Format, named, quantize


def inputs(format: Format, count: int = 1_000_000) -> torch.Tensor:
    spread = random_bits(count)
    # random bits seldom fall into the range of a small format: as many again spread over its binades
    low, high = format.min_exponent - format.mantissa - 2, format.max_exponent + 2
    generator = torch.Generator().manual_seed(2)
    exponents = torch.randint(max(low, -126), min(high, 126) + 1, (count // 4,), generator=generator)
    inside = torch.randn(count // 4, generator=generator) * torch.exp2(exponents.float())
    return torch.cat([all_bf16(), hard_cases(format), spread, inside])


def native_overflow(format: Format) -> str:
    """What ml_dtypes does above the largest number."""
    if format.infinities:
        return "inf"
    return "saturate" if format.nan == "none" else "nan"


@pytest.mark.parametrize("name", ML_DTYPES)
def test_nearest_is_ml_dtypes(name):
    format = named(name)
    x = inputs(format)
    with np.errstate(all="ignore"):
        expected = torch.from_numpy(x.numpy().astype(ML_DTYPES[name]).astype(np.float32))
    actual = quantize(x, format, overflow=native_overflow(format))
    agree = same(actual, expected)
    if format.nan == "none":
        # known disagreement: without a NaN code ml_dtypes makes NaN a zero; here it stays NaN
        assert bool((expected[x.isnan()] == 0).all())
        assert bool(actual[x.isnan()].isnan().all())
        agree |= x.isnan()
    assert bool(agree.all()), x[~agree][:5]


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("policy", ["saturate", "beyond"])
@pytest.mark.parametrize("count", [100_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", GFLOAT)
def test_every_rounding_and_policy_is_gfloat(name, count, rounding, policy):
    format = named(name)
    x = torch.cat([all_bf16(), hard_cases(format), random_bits()[:count]])
    beyond = "inf" if format.infinities else "nan"
    overflow = "saturate" if policy == "saturate" else beyond
    actual = quantize(x, format, rounding=rounding, overflow=overflow)
    asked = x
    known = torch.zeros_like(x, dtype=torch.bool)
    if format.nan == "none":
        # known disagreement: gfloat refuses what has no code (NaN; numbers beyond when it may not saturate)
        with pytest.raises(ValueError, match="No Infs or NaNs"):
            gfloat.round_ndarray(GFLOAT[name], np.array([1e6]), sat=False)
        known |= x.isnan()
        assert bool(actual[x.isnan()].isnan().all())
        if policy == "beyond":
            known |= actual.isnan()
        asked = torch.where(known, 0.0, x)
    if rounding == "toward_zero" and policy == "beyond" and not format.infinities:
        # known disagreement: gfloat rounds finite numbers beyond the range to the largest number; here overflow="nan" marks
        over = x.isfinite() & ~actual.isfinite()
        assert bool(over.any())
        top = format.max_exponent - format.mantissa
        assert bool((x[over].abs().double() >= format.max + 2.0**top).all())
        known |= over
    mode = {"nearest": RoundMode.TiesToEven, "toward_zero": RoundMode.TowardZero}[rounding]
    expected = gfloat.round_ndarray(GFLOAT[name], asked.double().numpy(), rnd=mode, sat=policy == "saturate")
    agree = same(actual, torch.from_numpy(expected).float()) | known
    assert bool(agree.all()), x[~agree][:5]


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("policy", ["saturate", "inf"])
@pytest.mark.parametrize("precision", range(1, 8))
def test_p3109_is_gfloat(precision, rounding, policy):
    format, table = p3109(precision), gfloat.formats.format_info_p3109(8, precision)
    ties = torch.cat([(format.values()[1:] + format.values()[:-1]) / 2, format.values(), format.values()[-1:] * 1.5])
    ties = torch.cat([ties, -ties]).float()
    x = torch.cat([ties, torch.nextafter(ties, ties * 2), torch.nextafter(ties, ties * 0), all_bf16()])
    mode = {"nearest": RoundMode.TiesToEven, "toward_zero": RoundMode.TowardZero}[rounding]
    expected = gfloat.round_ndarray(table, x.double().numpy(), rnd=mode, sat=policy == "saturate")
    agree = same(quantize(x, format, rounding, policy), torch.from_numpy(expected).float())
    if policy == "saturate":
        # known disagreement: gfloat keeps infinite x, here it becomes the largest number
        agree |= x.isinf()
    assert bool(agree.all()), x[~agree][:5]


@pytest.mark.parametrize("policy", ["saturate", "raise", "nan"])
def test_ties_at_the_top_go_to_even_codes(policy):
    even, odd = p3109(1), Format("odd", 7, 0, 64, infinities=False, nan="negative_zero", signed_zero=False)
    assert quantize(torch.tensor([1.5 * even.max]), even, overflow=policy).tolist() == [even.max]
    if policy == "raise":
        with pytest.raises(ValueError, match="above the largest"):
            quantize(torch.tensor([1.5 * odd.max]), odd, overflow=policy)
    elif policy == "nan":
        assert quantize(torch.tensor([1.5 * odd.max]), odd, overflow=policy).isnan().all()


def test_toward_zero_overflows_as_ieee_754():
    x = torch.tensor([65504.0, 65520.0, 70000.0, float("inf"), float("-inf"), -1e30, float("nan")])
    found = quantize(x, "fp16", "toward_zero", "inf")
    assert found[:-1].tolist() == [65504.0, 65504.0, 65504.0, float("inf"), float("-inf"), -65504.0]
    assert bool(found[-1].isnan())
    assert torch.equal(quantize(x.clone(), "fp16", "toward_zero", "inf", out=x).nan_to_num(1.0), found.nan_to_num(1.0))


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e4m3fnuz", "e5m2fnuz"])
def test_nan_policy_differs_from_saturate_only_beyond_the_range(name):
    format = named(name)
    x = inputs(format, 100_000)
    saturated, marked = quantize(x, format), quantize(x, format, overflow="nan")
    half = 2.0 ** (format.max_exponent - format.mantissa - 1)
    odd = format.max / (2 * half) % 2 == 1
    over = (x.abs().double() > format.max + half) | ((x.abs().double() == format.max + half) & odd) | x.isnan()
    assert torch.equal(marked.isnan(), over)
    assert bool(same(saturated, marked)[~over].all())
    beyond = over & ~x.isnan()
    assert bool((saturated[beyond] == format.max * x[beyond].sign()).all())


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"])
def test_torch_casts_in_range(name):
    # torch's policy beyond the range has changed between releases (e4m3: NaN, then saturation), so in range alone
    format = named(name.removeprefix("float8_"))
    x = torch.cat([all_bf16(), hard_cases(format)])
    x = x[x.abs() <= format.max]
    assert bool(same(quantize(x, format), x.to(getattr(torch, name)).float()).all())


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
def test_integers_are_numpy_rounding(bits, rounding):
    x = torch.cat([all_bf16(), random_bits()[:100_000], torch.arange(-600, 600) / 4])
    top = 2 ** (bits - 1) - 1
    rounded = {"nearest": np.rint, "toward_zero": np.trunc}[rounding](x.double().numpy())
    expected = torch.from_numpy(np.clip(rounded, -top, top) + 0.0).float()
    assert bool(same(quantize(x, f"int{bits}", rounding=rounding), expected).all())
    assert not torch.signbit(quantize(torch.tensor([-0.2]), f"int{bits}"))


def exact(x: torch.Tensor, format: Format, rounding: str) -> torch.Tensor:
    """The definition in float64 with frexp and NumPy's rounding: for formats that no peer has; saturates."""
    values = x.double().numpy()
    with np.errstate(invalid="ignore"):
        _, exponent = np.frexp(values)
        exponent = np.maximum(exponent - 1, format.min_exponent)
        if format.subnormals:
            step = np.ldexp(1.0, exponent - format.mantissa)
        else:
            small = np.abs(values) < format.smallest_normal
            step = np.where(small, format.smallest_normal, np.ldexp(1.0, exponent - format.mantissa))
        scaled = values / step
        if (
            format.mantissa == 0 and rounding == "nearest"
        ):  # 1.5 steps lie between the codes of 1 and 2: to the even one
            scaled = np.where((np.abs(scaled) == 1.5) & ((exponent + format.bias) % 2 == 0), np.sign(scaled), scaled)
        rounded = {"nearest": np.rint, "toward_zero": np.trunc}[rounding](scaled) * step
    return torch.from_numpy(np.clip(rounded, -format.max, format.max)).to(x.dtype)


ODD_FORMATS = [
    Format("no subnormals", 4, 3, infinities=False, nan="all_ones", subnormals=False),
    Format("high bias", 5, 3, 100),
    Format("low bias", 4, 2, -20),
    Format("below float32's normals", 5, 3, 140),
    named("e8m10"),
    named("e8m23"),
    named("e3m0finite"),
]


@pytest.mark.parametrize("format", ODD_FORMATS, ids=lambda format: format.name)
@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
def test_other_formats_are_the_definition(format, rounding):
    listed = hard_cases(format) if format.bits <= 16 else torch.tensor([0.0, -0.0, 3e38, -1e-45])
    x = torch.cat([all_bf16(), listed, random_bits()[:200_000]])
    x = x[x.isfinite()]
    agree = same(quantize(x, format, rounding=rounding), exact(x, format, rounding))
    assert bool(agree.all()), x[~agree][:5]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1", "int8", "fp16", "bf16", "e8m10", "e10m40"])
def test_other_dtypes(name, dtype):
    format = named(name)
    if not format.fits(dtype):
        with pytest.raises(ValueError, match="does not fit into torch"):
            quantize(torch.zeros(1, dtype=dtype), format)
        return
    wide = torch.Generator().manual_seed(3)
    x = torch.randn(100_000, generator=wide, dtype=torch.float64)
    x = (x * torch.exp2(torch.randint(-30, 20, x.shape, generator=wide).double())).to(dtype)
    x = torch.cat([x, all_bf16().to(dtype), torch.tensor([5e-324, 1.0 + 2.0**-50], dtype=torch.float64).to(dtype)])
    x = x[x.isfinite()]
    for rounding in ("nearest", "toward_zero"):
        actual = quantize(x, format, rounding=rounding)
        assert actual.dtype == dtype
        expected = exact(x, format, rounding)
        if not format.signed_zero:
            expected = expected + 0.0
        assert bool(same(actual, expected).all())

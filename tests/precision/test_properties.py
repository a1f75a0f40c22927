"""What holds for every format, rounding and input."""

from __future__ import annotations

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tests.precision.inputs import same
from trimtab.precision import Format, named, quantize

numbers = st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=40).map(lambda x: torch.tensor(x))
deterministic = st.sampled_from(["nearest", "ties_away", "toward_zero", "up", "down"])


@st.composite
def formats(draw: st.DrawFn) -> Format:
    if draw(st.booleans()):
        return named(
            draw(st.sampled_from(["fp16", "bf16", "e4m3", "e5m2", "e4m3fnuz", "e3m2", "e2m1", "int8", "int4"]))
        )
    exponent, mantissa = draw(st.integers(1, 8)), draw(st.integers(1, 23))
    special = draw(st.sampled_from(["ieee", "fn", "fnuz", "finite"]))
    assume(exponent > 1 or special == "finite")
    format = named(f"e{exponent}m{mantissa}{special}")
    assume(format.fits(torch.float32))
    return format


@settings(max_examples=80, deadline=None)
@given(numbers, formats(), deterministic)
def test_idempotent(x, format, rounding):
    once = quantize(x, format, rounding=rounding)
    assert bool(same(quantize(once, format, rounding=rounding), once).all())
    assert bool(same(quantize(once, format, rounding="stochastic"), once).all())


@settings(max_examples=80, deadline=None)
@given(numbers, formats(), deterministic)
def test_monotone_and_never_beyond_the_largest_number(x, format, rounding):
    rounded = quantize(x.sort().values, format, rounding=rounding)
    assert bool((rounded.diff() >= 0).all())
    assert bool((rounded.abs() <= format.max).all())
    assert bool((quantize(x, format, rounding="stochastic").abs() <= format.max).all())


@settings(max_examples=80, deadline=None)
@given(numbers, formats(), deterministic)
def test_odd(x, format, rounding):
    turned = {"up": "down", "down": "up"}.get(rounding, rounding)
    negated = -quantize(-x, format, rounding=turned)
    assert torch.equal(negated, quantize(x, format, rounding=rounding))
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    one, other = (
        quantize(sign * x, format, rounding="stochastic", generator=generator)
        for sign, generator in zip((1, -1), generators, strict=True)
    )
    assert torch.equal(one, -other)


@settings(max_examples=80, deadline=None)
@given(numbers, formats())
def test_nearest_is_nearest(x, format):
    x = x.clamp(-format.max, format.max)
    rounded = quantize(x, format).double()
    other = quantize(x, format, rounding="toward_zero").double()
    assert bool(((rounded - x.double()).abs() <= (other - x.double()).abs()).all())
    assert bool((other.abs() <= x.double().abs()).all())

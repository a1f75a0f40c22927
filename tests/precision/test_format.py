"""Formats as data, against ml_dtypes' finfo and gfloat's tables."""

from __future__ import annotations

import gfloat
import ml_dtypes
import numpy as np
import pytest
import torch
from gfloat import formats as gformats

from trimtab.precision import FORMATS, Format, describe, named

ML_DTYPES = {
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
    "e3m4": ml_dtypes.float8_e3m4,
    "e4m3ieee": ml_dtypes.float8_e4m3,
    "e4m3b11fnuz": ml_dtypes.float8_e4m3b11fnuz,
}
GFLOAT = {
    "fp16": gformats.format_info_binary16,
    "bf16": gformats.format_info_bfloat16,
    "e4m3": gformats.format_info_ocp_e4m3,
    "e5m2": gformats.format_info_ocp_e5m2,
    "e3m2": gformats.format_info_ocp_e3m2,
    "e2m3": gformats.format_info_ocp_e2m3,
    "e2m1": gformats.format_info_ocp_e2m1,
}


@pytest.mark.parametrize("name", ML_DTYPES)
def test_limits_are_those_of_ml_dtypes(name):
    format, info = named(name), ml_dtypes.finfo(ML_DTYPES[name])
    assert format.max == float(info.max)
    assert format.smallest_normal == float(info.smallest_normal)
    assert format.smallest_subnormal == float(info.smallest_subnormal)
    assert format.bits == info.bits


@pytest.mark.parametrize("name", [name for name in GFLOAT if named(name).bits <= 8])
def test_values_and_special_codes_are_those_of_gfloat(name):
    format, info = named(name), GFLOAT[name]
    codes = [gfloat.decode_float(info, code) for code in range(2**info.bits)]
    finite = {value.fval for value in codes if np.isfinite(value.fval) and not np.signbit(value.fval)}
    assert format.values().tolist() == sorted(finite)
    assert format.infinities == any(np.isinf(value.fval) for value in codes)
    assert (format.nan != "none") == any(np.isnan(value.fval) for value in codes)
    assert format.signed_zero == any(value.fval == 0 and np.signbit(value.fval) for value in codes)


@pytest.mark.parametrize("name", ML_DTYPES)
def test_values_are_the_codes_of_ml_dtypes(name):
    bits = named(name).bits
    codes = np.arange(2 ** (bits - 1), dtype=np.uint16 if bits == 16 else np.uint8).view(ML_DTYPES[name])
    with np.errstate(invalid="ignore"):  # NaN codes
        values = codes.astype(np.float64)
    assert named(name).values().tolist() == values[np.isfinite(values)].tolist()


def test_integers_are_symmetric():
    assert named("int4").values().tolist() == list(range(8))
    assert named("int8").max == 127
    assert named("int8").smallest_subnormal == 1
    assert named("int8").max_exponent == 6


def p3109(precision: int) -> Format:
    """8 bits: one infinity on each side in the last code, NaN where -0 would be."""
    fields = (8 - precision, precision - 1, 2 ** (7 - precision))
    return Format(f"binary8p{precision}", *fields, infinities=True, nan="negative_zero", signed_zero=False)


@pytest.mark.parametrize("precision", range(1, 8))
def test_p3109_formats_have_infinity_in_the_last_code(precision):
    format, table = p3109(precision), gformats.format_info_p3109(8, precision)
    assert format.max == table.max
    codes = np.arange(127, dtype=np.uint8)
    assert format.values().tolist() == gfloat.decode_ndarray(table, codes).tolist()
    assert "infinity yes, NaN one code" in describe(format)


def test_special_codes_without_mantissa_bits_take_whole_binades():
    assert p3109(1).max == 2.0**62
    assert Format("f", 3, 0, infinities=False, nan="all_ones").values().tolist() == [0, 0.25, 0.5, 1, 2, 4, 8]
    assert Format("f", 3, 1, nan="all_ones").max == 12.0


def test_names():
    assert named("FP8") is FORMATS["e4m3"] is named("e4m3fn")
    assert named("e3m4") == Format("e3m4", 3, 4)
    assert named("e4m3fnuz") is FORMATS["e4m3fnuz"]
    assert named("e5m3fnuz").bias == 16
    assert named("e4m3b11fn").bias == 11
    assert named("e3m0finite").values().tolist() == [0, 0.25, 0.5, 1, 2, 4, 8, 16]
    assert named("int6").max == 31
    mine = Format("mine", 3, 4)
    assert named(mine) is mine


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("e4m3f", "unknown number format 'e4m3f'; did you mean e4m3"),
        ("bfloat", "did you mean bfloat16"),
        ("int1", "2 to 16 bits"),
        ("int17", "2 to 16 bits"),
        ("e12m3", "exponent bits of format 'e12m3' must be a whole number in 0..11, got 12"),
        ("e1m2", "needs infinities=True, 2 bits of exponent"),
        ("", "unknown number format ''; formats are fp16"),
    ],
)
def test_unknown_names_are_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message):
        named(name)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"exponent": -1, "mantissa": 3}, "exponent bits of format 'f' must be a whole number in 0..11, got -1"),
        ({"exponent": 4, "mantissa": -3}, "mantissa bits of format 'f' must be a whole number in 0..52, got -3"),
        ({"exponent": 4, "mantissa": 3, "infinities": False}, "infinities=True"),
        ({"exponent": 4, "mantissa": 3, "nan": "some"}, "nan of format 'f' must be one of"),
        ({"exponent": 4, "mantissa": 3, "infinities": False, "nan": "negative_zero"}, "signed_zero=False"),
        ({"exponent": 0, "mantissa": 0, "infinities": False, "nan": "none"}, "needs mantissa >= 1"),
        ({"exponent": 1, "mantissa": 0, "infinities": False, "nan": "all_ones"}, "0 mantissa bits are too few"),
        ({"exponent": 11, "mantissa": 3, "bias": 2000}, "beyond the range of float64"),
    ],
)
def test_impossible_formats_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Format("f", **fields)


def test_wrong_types_are_refused():
    with pytest.raises(TypeError, match=r"a whole number in 0\.\.11, got 4\.0"):
        Format("f", 4.0, 3)
    with pytest.raises(TypeError, match="got 8"):
        named(8)
    with pytest.raises(TypeError, match="bias"):
        Format("f", 4, 3, 1.5)


def test_values_of_wide_formats_are_not_listed():
    with pytest.raises(ValueError, match="up to 16 bits"):
        named("e8m23").values()


def test_fits():
    assert named("bf16").fits(torch.float32)
    assert not named("bf16").fits(torch.float16)
    assert named("e8m23").fits(torch.float32)
    assert not named("e8m24").fits(torch.float32)
    assert named("int8").fits(torch.bfloat16)
    assert not named("int10").fits(torch.bfloat16)
    assert not Format("low", 5, 2, 160).fits(torch.float32)


def test_describe_names_limits_and_counts_every_number():
    text = describe("e4m3")
    assert "largest            448" in text
    assert "smallest subnormal 0.00195312" in text
    assert "infinity no, NaN one code, -0 yes" in text
    counts = [int(line.split()[-1]) for line in text.splitlines()[6:]]
    assert sum(counts) == len(named("e4m3").values())
    assert "..." in describe("bf16")
    assert "magnitude, whole numbers" in describe("int8")
    assert "all: 0 1 2 3 4 5 6 7" in describe("int4")

"""Scaled formats bit for bit against NumPy: every bf16 pattern as a member of a block, over a million numbers each."""

from __future__ import annotations

import functools

import ml_dtypes
import numpy as np
import pytest
import torch

from tests.precision.inputs import all_bf16, same
from tests.precision.references import e2m1
from tests.precision.test_scaling import block_rule
from trimtab.precision import MX, Block, PerTensor, named, quantize

NATIVE = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}
SMALLEST = np.float32(2.0**-126)


@functools.cache
def patterns(size: int) -> torch.Tensor:
    """Each finite pattern among `size - 1` others of up to its own size; shape (65,024, size)."""
    each = all_bf16()
    each = each[each.isfinite()]
    x = each[:, None] * (torch.rand(len(each), size, generator=torch.Generator().manual_seed(3)) * 2 - 1)
    x[:, 5] = each
    return x


def absmax_rule(x: np.ndarray, name: str) -> np.ndarray:
    """Rows: s = A / max in float32, the format's nearest number to x / s, saturated, times s."""
    top = np.float32(named(name).max)
    scale = np.maximum(np.abs(x).max(1, keepdims=True) / top, SMALLEST)
    scaled = x / scale
    if name == "e2m1":
        return e2m1(scaled).astype(np.float32) * scale
    return np.clip(scaled, -top, top).astype(NATIVE[name]).astype(np.float32) * scale


def agree(x: torch.Tensor, actual: torch.Tensor, expected: torch.Tensor) -> None:
    top = torch.finfo(torch.float32).max
    right = same(actual, expected.clamp(-top, top))  # what a scale brings beyond float32 stays its largest number
    assert bool(right.all()), (x[~right][:4], actual[~right][:4], expected[~right][:4])


SOME = [("e2m1", "floor"), ("e4m3", "power_of_two")]
MORE = [
    pytest.param(name, rule, marks=pytest.mark.slow)
    for name in ("e4m3", "e5m2", "e3m2", "e2m3", "e2m1", "int8")
    for rule in ("floor", "even", "ceil", "power_of_two")
    if (name, rule) not in SOME
]


@pytest.mark.parametrize(("name", "rule"), [*SOME, *MORE])
def test_mx(name: str, rule: str) -> None:
    x = patterns(32)
    expected = block_rule(x, name, rule)
    agree(x, quantize(x, name, scaling=MX(rule=rule)), expected if named(name).signed_zero else expected + 0.0)


@pytest.mark.parametrize("name", ["e4m3", "e5m2", "e2m1"])
@pytest.mark.parametrize("size", [16, pytest.param(128, marks=pytest.mark.slow)])
def test_blocks_with_a_float_scale(name: str, size: int) -> None:
    """Of 128 those of fp8-deepseek; e2m1 and 16 for what lies between."""
    x = patterns(size)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        expected = torch.from_numpy(absmax_rule(x.numpy(), name))
    agree(x, quantize(x, name, scaling=Block(size)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_tiles_with_a_float_scale(name: str) -> None:
    """Tiles of 128 x 128, as fp8-deepseek has them for weights."""
    x = patterns(128)[: 65024 // 128 * 128]
    tiles = x.view(-1, 128 * 128)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        expected = torch.from_numpy(absmax_rule(tiles.numpy(), name)).view(x.shape)
    agree(x, quantize(x, name, scaling=Block(128, rows=128)), expected)


@pytest.mark.parametrize("name", ["e4m3", "e5m2"])
def test_one_scale(name: str) -> None:
    """Tensors of 4,096 numbers each, so that the scale differs."""
    x = patterns(32).reshape(-1, 4096)
    with np.errstate(over="ignore", under="ignore", divide="ignore"):
        expected = torch.from_numpy(absmax_rule(x.numpy(), name))
    for part, wanted in zip(x, expected, strict=True):
        agree(part, quantize(part, name, scaling=PerTensor()), wanted)

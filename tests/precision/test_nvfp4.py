"""NVFP4 and tiles, bit for bit against an independent NumPy reference."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch

from tests.precision import references
from tests.precision.inputs import all_bf16, random_bits, same
from trimtab.precision import MX, NVFP4, Block, LowPrecision, named, quantize


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inputs(kind: str) -> torch.Tensor:
    """A matrix of float32 whose rows are a multiple of 16 long, at least 2^20 entries where random."""
    generator = seeded(1)
    x = torch.randn(4096, 256, generator=generator)
    if kind == "outliers":
        return torch.where(torch.rand(x.shape, generator=generator) < 0.01, 30 * x, x)
    if kind == "spread":
        return x * torch.exp2(torch.randint(-30, 1, (4096, 256), generator=generator).float())
    if kind == "ties":
        return torch.randint(-48, 49, x.shape, generator=generator) / 8.0
    if kind == "subnormal":
        return x * 2.0**-140
    if kind == "zeros":
        return x.masked_fill_(
            torch.rand(4096, 16, 1, generator=generator).expand(-1, -1, 16).reshape(x.shape) < 0.5, 0.0
        )
    if kind == "bits":
        finite = random_bits()[random_bits().isfinite()]
        return finite[: finite.numel() // 256 * 256].view(-1, 256)
    return x


KINDS = ["normal", "outliers", "spread", "ties", "subnormal", "zeros", "bits"]
FORMS = {"plain": {}, "up": {"scale_rounding": "up"}, "four over six": {"four_over_six": True}}
REFERENCE = {"plain": {}, "up": {"up": True}, "four over six": {"four_over_six": True}}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_reference(form, kind):
    x = inputs(kind)
    expected = torch.from_numpy(references.nvfp4(x.view(-1, 16).numpy(), **REFERENCE[form])).view(x.shape)
    actual = quantize(x, "e2m1", scaling=NVFP4(**FORMS[form]))
    agree = same(actual, expected)
    assert bool(agree.all()), (x[~agree][:4], actual[~agree][:4], expected[~agree][:4])


@pytest.mark.parametrize("form", FORMS)
def test_every_bf16_pattern_as_a_member_of_a_block(form):
    """Each finite pattern in a block with 15 numbers of its own size, and tensors small enough that S differs."""
    patterns = all_bf16()
    patterns = patterns[patterns.isfinite()]
    x = patterns[:, None] * (torch.rand(len(patterns), 16, generator=seeded(3)) * 2 - 1)
    x[:, 5] = patterns
    for part in x.split(4096):
        expected = references.nvfp4(part.numpy(), **REFERENCE[form])
        actual = quantize(part, "e2m1", scaling=NVFP4(**FORMS[form]))
        assert bool(same(actual, torch.from_numpy(expected)).all())
        narrow = part.bfloat16()
        expected = references.nvfp4(narrow.float().numpy(), **REFERENCE[form])
        actual = quantize(narrow, "e2m1", scaling=NVFP4(**FORMS[form]))
        assert bool(same(actual, torch.from_numpy(expected).bfloat16()).all())


def test_the_order_of_operations_is_the_one_named():
    """a (S (1 / 6)) and (a / 6) S differ in the last bit, which decides where they lie between two numbers of e4m3."""
    numbers = named("e4m3").values().numpy()
    ties = ((numbers[1:] + numbers[:-1]) / 2).astype(np.float32)
    near = np.float32(1) + np.arange(-3, 4, dtype=np.float32) * np.float32(2.0**-23)
    different = 0
    for amax in np.linspace(1, 2, 50).astype(np.float32):
        whole = np.float32(448 * 6) / amax
        largest = (ties[:, None] * np.float32(6) / whole * near).reshape(-1)
        x = torch.zeros(1 + len(largest), 16)
        x[:, 3] = torch.from_numpy(np.concatenate([[amax], largest]).astype(np.float32))
        new = references.e4m3(x[:, 3].numpy() * (whole * (np.float32(1) / np.float32(6))))
        different += int((new != references.e4m3(x[:, 3].numpy() / np.float32(6) * whole)).sum())
        assert np.array_equal(NVFP4().scales(x, "e2m1").numpy(), new * (np.float32(1) / whole))
    assert different > 100


@pytest.mark.parametrize("shape", [(64, 96), (37, 53), (16, 16), (1, 5), (3, 130)])
@pytest.mark.parametrize("scaling", [NVFP4(rows=16), NVFP4(rows=16, four_over_six=True)], ids=str)
def test_tiles_of_nvfp4(scaling, shape):
    x = torch.randn(shape, generator=seeded(2))
    tiles = references.tiles(x.numpy(), 16, 16).astype(np.float32)
    rounded = torch.from_numpy(references.nvfp4(tiles, four_over_six=scaling.four_over_six))
    down, across = -(-shape[0] // 16), -(-shape[1] // 16)
    expected = (
        rounded.view(down, across, 16, 16).transpose(1, 2).reshape(down * 16, across * 16)[: shape[0], : shape[1]]
    )
    assert torch.equal(quantize(x, "e2m1", scaling=scaling), expected)
    # a weight has the same numbers in both products: of its transpose, blocks along the other dimension
    other = type(scaling)(rows=16, dim=0, four_over_six=scaling.four_over_six)
    assert torch.equal(quantize(x.t(), "e2m1", scaling=other), expected.t())
    assert torch.equal(quantize(x.t().contiguous(), "e2m1", scaling=scaling), expected.t())


@pytest.mark.parametrize(("rows", "size"), [(128, 128), (2, 3), (5, 1), (1, 128)])
@pytest.mark.parametrize("rule", ["absmax", "power_of_two"])
def test_tiles_are_their_formula(rule, rows, size):
    x = torch.randn(3, 150, 140, generator=seeded(4)) * torch.exp2(torch.randint(-9, 9, (3, 150, 1)).float())
    for dim, matrix in ((-1, x), (-2, x.transpose(-1, -2))):
        got = quantize(matrix, "e4m3", scaling=Block(size, dim, rows=rows, rule=rule))
        got = got if dim == -1 else got.transpose(-1, -2)
        for part, rounded in zip(x, got, strict=True):
            for top in range(0, 150, rows):
                for left in range(0, 140, size):
                    if rows * size < 20 and (top > 9 or left > 9):
                        continue
                    tile = part[top : top + rows, left : left + size]
                    scale = tile.abs().max() / 448
                    scale = scale if rule == "absmax" else torch.exp2(torch.ceil(torch.log2(scale)))
                    expected = quantize(tile / scale, "e4m3") * scale
                    assert torch.equal(rounded[top : top + rows, left : left + size], expected)


def test_layouts_chunks_and_in_place(monkeypatch):
    x = torch.randn(3, 50, 70, generator=seeded(5))
    for scaling in (NVFP4(), NVFP4(rows=16), MX(rows=32), Block(16, rows=4), NVFP4(dim=1), NVFP4(four_over_six=True)):
        expected = quantize(x, "e2m1", scaling=scaling)
        turned = x.transpose(0, 2).contiguous().transpose(0, 2)
        assert torch.equal(quantize(turned, "e2m1", scaling=scaling), expected)
        inside = turned.clone(memory_format=torch.preserve_format)
        assert quantize(inside, "e2m1", scaling=scaling, out=inside) is inside
        assert torch.equal(inside, expected)
        with monkeypatch.context() as patch:
            patch.setattr(sys.modules["trimtab.precision.quantize"], "CHUNK_CPU", 66)
            assert torch.equal(quantize(x, "e2m1", scaling=scaling), expected)


def test_what_is_not_finite_shows_and_raise_refuses_it():
    x = torch.ones(4, 32)
    x[1, 5] = math.nan
    assert bool(quantize(x, "e2m1", scaling=NVFP4()).isnan().all())
    with pytest.raises(ValueError, match="x has NaN, which overflow='raise' refuses"):
        quantize(x, "e2m1", scaling=NVFP4(), overflow="raise")
    x[1, 5] = math.inf
    with pytest.raises(ValueError, match="x has an infinity"):
        quantize(x, "e2m1", scaling=NVFP4(), overflow="raise")


def test_saturation_is_what_the_scale_rounded_down_leaves_out():
    """The block's s is 16.9375 rounded down to 16: its largest entry lies 1/17 beyond."""
    x = torch.zeros(2, 16)
    x[0, 0], x[1, 0] = 448.0 * 6, 16.9375 * 6
    assert quantize(x, "e2m1", scaling=NVFP4())[1, 0] == 96.0
    assert quantize(x, "e2m1", scaling=NVFP4(scale_rounding="up"))[1, 0] == 18.0 * 6
    assert bool(quantize(x, "e2m1", scaling=NVFP4(), overflow="nan")[1, 0] == 96.0)  # 6.35 rounds to 6
    with pytest.raises(ValueError, match="after scaling, above the largest number of format 'e2m1', 6"):
        quantize(x * torch.tensor([[1.0], [1.03]]), "e2m1", "stochastic", "raise", NVFP4())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NVFP4(0), "size of a block must be a whole number of 1 or more, got 0"),
        (lambda: NVFP4(rows=0), "rows of a block must be a whole number of 1 or more, got 0"),
        (lambda: NVFP4(scale_rounding="down"), "scale_rounding must be one of 'nearest', 'up', got 'down'"),
        (lambda: NVFP4(rule="floor"), "rule must be absmax, got 'floor'"),
        (lambda: quantize(torch.ones(16), "e4m3", scaling=NVFP4(four_over_six=True)), "about e2m1.* got format 'e4m3'"),
        (
            lambda: quantize(torch.ones(16), "e2m1", scaling=NVFP4(rows=16)),
            r"tiles of two dimensions, got .* shape \(16,\)",
        ),
        (lambda: MX(rule="ceil", unbiased=True), "rule='ceil' is unbiased already"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_lever_takes_it():
    lever = LowPrecision("e2m1", weights="e2m1", scaling=NVFP4(rows=16))
    assert "NVFP4(rule='absmax', size=16, dim=-1, rows=16)" in repr(lever)

"""The CUDA kernel's arithmetic, compiled for this processor, against the passes of `Rounder`, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.kernels import compiled
from trimtab.precision import MX, PerChannel, named, quantize
from trimtab.precision.cuda_rounding import OVERFLOWS, ROUNDINGS, SOURCE, CudaRounding
from trimtab.precision.rounding import Rounder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return compiled(SOURCE, "round_entries", tmp_path_factory.mktemp("kernel"))


def numbers() -> torch.Tensor:
    """Every upper half of float32's bits with two lower halves: all exponents, subnormals, infinities, NaN; and ties."""
    upper = torch.arange(-(2**15), 2**15, dtype=torch.int32) << 16
    lower = torch.tensor([0, 0x8000, 0x7FFF], dtype=torch.int32)
    return (upper.unsqueeze(1) | lower).view(torch.float32).reshape(-1, 64).contiguous()


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Equal to the bit, but for the payload of NaN."""
    nan = found.isnan() & expected.isnan()
    return bool(((found.view(torch.int32) == expected.view(torch.int32)) | nan).all())


@pytest.mark.parametrize("rounding", list(ROUNDINGS))
@pytest.mark.parametrize("overflow", list(OVERFLOWS))
@pytest.mark.parametrize("name", ["fp16", "bf16", "e4m3", "e5m2", "e3m2", "e2m1", "int8"])
def test_the_kernel_rounds_as_torch_does(run, name, overflow, rounding):
    format = named(name)
    if overflow == "inf" and not format.infinities:
        pytest.skip("the format has no infinity")
    x = numbers()
    x = x if rounding != "stochastic" else x.flatten()[:65536].reshape(-1, 64)
    rounder = Rounder(format, rounding, overflow, torch.Generator().manual_seed(0), torch.float32, x.device, x.numel())
    rounder._adds_up = False  # a CPU's short way for few digits draws otherwise
    expected, found = torch.empty_like(x), torch.empty_like(x)
    rounder(x, expected)
    again = Rounder(format, rounding, overflow, torch.Generator().manual_seed(0), torch.float32, x.device, x.numel())
    uniform = again._uniform(x) if rounding == "stochastic" else None
    CudaRounding(run, format, rounding, overflow, again.lowest, again.highest)(x, found, None, None, uniform)
    assert same(found, expected)


@pytest.mark.parametrize("scaling", [PerChannel(), MX(size=64), MX(size=64, unbiased=True)])
@pytest.mark.parametrize("name", ["e4m3", "e2m1", "int4"])
def test_scales_of_rows_are_the_same(run, name, scaling):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(512, 64, generator=generator) * 2.0 ** torch.randint(-30, 30, (512, 1), generator=generator)
    x[0], x[1, 3] = 0, torch.inf
    format = named(name)
    scales = scaling.of_rows(x, format, torch.float32)
    overflow = "saturate"
    passes = Rounder(format, "nearest", overflow, None, torch.float32, x.device, 1024)
    fused = CudaRounding(run, format, "nearest", overflow, passes.lowest, passes.highest)
    found = torch.empty_like(x)
    assert fused.takes(x, found, scales.encode, scales.decode)
    fused(x, found, scales.encode, scales.decode, None)
    assert same(found, quantize(x, format, scaling=scaling))


def test_what_the_kernel_cannot_read_it_leaves(run):
    format = named("e4m3")
    fused = CudaRounding(run, format, "nearest", "saturate", 1.0, 1.0)
    x = torch.zeros(4, 6)
    assert fused.takes(x, x, None, None)
    assert not fused.takes(x.half(), x, None, None)
    assert not fused.takes(x[:, ::2], x[:, ::2], None, None)
    assert not fused.takes(x, x, None, torch.ones(6))
    assert not fused.takes(x, x, None, torch.ones(4, 1, dtype=torch.float64))
    assert CudaRounding.of(format, "up", "saturate", 1.0, 1.0, torch.device("cuda", 0)) is None

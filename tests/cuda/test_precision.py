"""Rounding on the device is the CPU's, bit for bit; stochastic rounding has the right mean and repeats with its seed."""

from __future__ import annotations

import pytest
import torch

from trimtab.precision import FORMATS, MX, Block, PerChannel, PerTensor, named, quantize, shrinkage_sums

SCALINGS = {"none": None, "tensor": PerTensor(), "channel": PerChannel(), "block": Block(32), "mx": MX()}


def numbers(count: int = 4096) -> torch.Tensor:
    """Normal variables over many magnitudes, zeros of both signs, ties, the largest and least numbers."""
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(count, generator=generator) * 2.0 ** torch.randint(-20, 12, (count,), generator=generator)
    spread[:8] = torch.tensor([0.0, -0.0, 1.0, -1.5, 3.5, 1e-38, 1e-45, 240.0])
    return spread.reshape(64, -1)


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero"])
@pytest.mark.parametrize("scaling", list(SCALINGS))
@pytest.mark.parametrize("format", ["fp16", "bf16", "e4m3", "e5m2", "e2m1", "int4", "int8"])
def test_rounding_equals_the_cpus_to_the_bit(format, scaling, rounding, device):
    x = numbers()
    expected = quantize(x, format, rounding, scaling=SCALINGS[scaling])
    found = quantize(x.to(device), format, rounding, scaling=SCALINGS[scaling])
    assert torch.equal(found.cpu().view(torch.int32), expected.view(torch.int32))


def test_every_named_format_is_at_home_on_the_device(device):
    x = numbers()
    for name in FORMATS:
        try:
            expected = quantize(x, name)
        except ValueError:  # does not fit float32
            continue
        assert torch.equal(quantize(x.to(device), name).cpu(), expected), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_and_layouts_equal_the_cpus(dtype, device):
    x = numbers().reshape(4, 16, 8, 8).to(dtype)
    for layout in (x, x.to(memory_format=torch.channels_last), x[:, ::2]):
        assert torch.equal(
            quantize(layout.to(device), "e2m1", scaling=MX()).cpu(), quantize(layout, "e2m1", scaling=MX())
        )


def test_stochastic_rounding_is_unbiased_and_repeats(device):
    """1.3 lies 0.6 of the way from 1 to 1.5 in e2m1: the mean of n draws is 1.3 within five standard errors."""
    x = torch.full((200_000,), 1.3, device=device)

    def draw(seed):
        return quantize(x, "e2m1", "stochastic", generator=torch.Generator(device).manual_seed(seed))

    first = draw(0)
    assert set(first.unique().tolist()) == {1.0, 1.5}
    assert torch.equal(first, draw(0))
    assert not torch.equal(first, draw(1))
    error = 0.5 * (0.6 * 0.4 / x.numel()) ** 0.5
    assert abs(float(first.double().mean()) - 1.3) < 5 * error


def test_shrinkage_equals_the_cpus(device):
    x = numbers()
    rounded = quantize(x, "e2m1")
    expected = shrinkage_sums(x, rounded, named("e2m1"))
    found = shrinkage_sums(x.to(device), rounded.to(device), named("e2m1"))
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-12, atol=0)

"""The network that converges in a few epochs: whitened patches, its start, what is frozen."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from trimtab import models
from trimtab.models.cifar_fast import CifarFast, whitening_filters


def correlated_images(count: int, channels: int, seed: int) -> torch.Tensor:
    """Smooth images whose channels are mixtures of each other."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, 12, 10, generator=generator, dtype=torch.float64)
    mixed = torch.einsum("dc,nchw->ndhw", torch.randn(channels, channels, generator=generator).double(), noise)
    return F.avg_pool2d(mixed, 3, stride=1) + 0.3


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(0, 1000))
def test_whitened_patches_have_the_identity_as_their_second_moments(channels: int, seed: int) -> None:
    images = correlated_images(40, channels, seed)
    filters = whitening_filters(images, eps=1e-15)
    outputs = F.conv2d(images, filters).movedim(1, -1).reshape(-1, len(filters))
    half = len(filters) // 2
    assert half == 4 * channels
    moments = outputs[:, :half].T @ outputs[:, :half] / len(outputs)
    torch.testing.assert_close(moments, torch.eye(half, dtype=torch.float64), rtol=0, atol=1e-6)
    assert torch.equal(filters[half:], -filters[:half])


def test_eps_damps_faint_directions_and_the_greatest_comes_first() -> None:
    images = correlated_images(40, 3, 0)
    sharp, damped = (whitening_filters(images, eps).flatten(1)[:12] for eps in (1e-15, 0.5))
    values = 1 / sharp.square().sum(1)
    assert bool((values[:-1] >= values[1:]).all())
    torch.testing.assert_close(damped.square().sum(1), 1 / (values + 0.5))


def test_logits_from_the_formula_written_out() -> None:
    torch.manual_seed(0)
    network = models.create("cifar10_fast", num_classes=5, width=3, head_scale=0.5).eval()
    assert isinstance(network, CifarFast)
    network.start_from(torch.randn(10, 3, 16, 16))
    x = torch.randn(2, 3, 19, 16)
    h = F.gelu(F.conv2d(x, network.whiten.weight, network.whiten.bias))
    for group in network.groups:
        h = F.max_pool2d(F.conv2d(h, group.conv1.weight, padding=1), 2)
        h = F.gelu(h / (1 + 1e-5) ** 0.5 + group.bn1.bias[:, None, None])
        h = F.conv2d(h, group.conv2.weight, padding=1)
        h = F.gelu(h / (1 + 1e-5) ** 0.5 + group.bn2.bias[:, None, None])
    expected = h.flatten(2).amax(2) @ network.head.weight.T / 2
    torch.testing.assert_close(network(x), expected, rtol=1e-4, atol=1e-5)


def test_start_is_dirac_and_scales_and_whitening_are_frozen() -> None:
    network = models.create("cifar10_fast", num_classes=10)
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Conv2d) and module.bias is None]
    for weight in weights:
        identity = torch.zeros_like(weight)
        nn.init.dirac_(identity)
        least = min(weight.shape[:2])
        assert torch.equal(weight[:least], identity[:least])
        assert bool((weight[least:] != 0).all())
    frozen = [name for name, parameter in network.named_parameters() if not parameter.requires_grad]
    assert frozen == ["whiten.weight", *(f"groups.{i}.bn{j}.weight" for i in range(3) for j in (1, 2))]
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    channels = (24, 32, 32, 128, 128, 128, 128)
    expected = 24 + sum(9 * a * b + b for a, b in itertools.pairwise(channels)) + 1280
    assert trained == expected
    F.cross_entropy(network(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    for name, parameter in network.named_parameters():
        assert (parameter.grad is None) == (name in frozen)
        assert parameter.grad is None or bool(parameter.grad.any()), name


def test_other_images_are_refused() -> None:
    network = models.create("cifar10_fast", num_classes=10)
    with pytest.raises(ValueError, match="takes 3 channels, the images to start from have 1"):
        network.start_from(torch.randn(4, 1, 32, 32))  # type: ignore[operator]
    with pytest.raises(ValueError, match="sides of 9 or more, got"):
        network(torch.zeros(1, 3, 8, 32))
    assert network(torch.randn(2, 3, 9, 9)).shape == (2, 10)
    for wrong in (torch.zeros(0, 3, 8, 8), torch.zeros(2, 3, 1, 8)):
        with pytest.raises(ValueError, match="whitening needs images"):
            whitening_filters(wrong)
    with pytest.raises(ValueError, match="width must be a whole number of 1 or more"):
        models.create("cifar10_fast", num_classes=10, width=0)

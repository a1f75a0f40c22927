"""The distribution of weights against closed forms and NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trimtab.observe import weight_distribution
from trimtab.parameters import Rule


def test_gaussian_weights() -> None:
    net = nn.Sequential(nn.Linear(600, 500), nn.Linear(500, 400))
    for layer, std in zip(net, (0.02, 3.0), strict=True):
        nn.init.normal_(layer.weight, std=std)
    found = weight_distribution(net)
    assert found.variance_of_magnitude == pytest.approx(math.pi / 2 - 1, rel=0.01)
    assert found.near_zero == pytest.approx(math.erf(0.1 / math.sqrt(2)), rel=0.02)
    assert found.root_mean_square == pytest.approx(math.sqrt((3e5 * 0.02**2 + 2e5 * 9) / 5e5), rel=0.01)
    assert sum(found.counts) == 500_000


@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(
        st.lists(st.floats(-5, 5, width=32).filter(lambda w: w == 0 or abs(w) > 1e-3), min_size=1, max_size=20),
        min_size=1,
        max_size=4,
    ),
    bins=st.integers(1, 12),
)
def test_against_numpy(layers: list[list[float]], bins: int) -> None:
    found = weight_distribution([torch.tensor([layer]) for layer in layers], bins=bins, limit=2.0)
    ratios, variances = [], []
    for layer in layers:
        w = np.array(layer, dtype=np.float64)
        rms = np.sqrt((w**2).mean())
        ratios.append(w / rms if rms else w)
        if rms:
            variances.append(np.abs(w).var() / np.abs(w).mean() ** 2)
    ratio = np.concatenate(ratios)
    counts, edges = np.histogram(np.clip(ratio, -2, 2), bins, (-2, 2))
    assert np.allclose(found.edges, edges)
    assert sum(found.counts) == ratio.size
    assert np.abs(np.array(found.counts) - counts).sum() <= 2  # a value on an edge may fall to either side
    assert found.near_zero == pytest.approx((np.abs(ratio) < 0.1).mean(), abs=1e-9)
    assert found.variance_of_magnitude == pytest.approx(np.mean(variances) if variances else 0.0, abs=1e-9)
    assert found.root_mean_square == pytest.approx(np.sqrt((np.concatenate(layers) ** 2).mean()))


def test_each_layer_is_scaled_by_its_own_root_mean_square() -> None:
    small, large = torch.randn(50, 50) * 1e-4, torch.randn(50, 50) * 10
    together = weight_distribution([small, large])
    apart = [weight_distribution([small]).counts, weight_distribution([large]).counts]
    assert together.counts == [one + other for one, other in zip(*apart, strict=True)]
    assert together.near_zero < 0.2


def test_outliers_stand_in_the_outermost_bins() -> None:
    weight = torch.zeros(1, 100)
    weight[0, 0] = -7.0
    found = weight_distribution([weight], bins=3)
    assert found.counts == [1, 99, 0]
    assert found.near_zero == 0.99


def test_mean_far_above_spread_does_not_cancel() -> None:
    weight = (10_000 + torch.randn(100, 100, dtype=torch.float64)).float()
    expected = weight.double().var(correction=0) / weight.double().mean() ** 2
    assert weight_distribution([weight]).variance_of_magnitude == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    weight = torch.randn(64, 64).to(dtype)
    assert weight_distribution([weight]) == weight_distribution([weight.double()])


def test_tied_frozen_and_small_tensors() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    net[0].weight.requires_grad_(False)
    assert sum(weight_distribution(net).counts) == 16
    with pytest.raises(ValueError, match="no prunable weights"):
        weight_distribution(net, rule=Rule())


def test_model_is_left_alone_and_zeros_are_allowed() -> None:
    net = nn.Linear(4, 4)
    nn.init.zeros_(net.weight)
    found = weight_distribution(net)
    assert (found.near_zero, found.variance_of_magnitude, found.root_mean_square) == (1.0, 0.0, 0.0)
    assert net.weight.grad is None
    assert net.weight.count_nonzero() == 0


def test_bad_input() -> None:
    net = nn.Linear(2, 2)
    for kwargs in ({"bins": 0}, {"limit": 0.0}, {"limit": float("inf")}):
        with pytest.raises(ValueError, match=f"{next(iter(kwargs))} must be"):
            weight_distribution(net, **kwargs)
    with torch.no_grad():
        net.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight holds weights that are not finite"):
        weight_distribution(net)
    with pytest.raises(ValueError, match="no prunable"):
        weight_distribution(nn.BatchNorm1d(3))

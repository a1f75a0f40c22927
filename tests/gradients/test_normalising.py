"""Centralize and ZScore against NumPy float64, and against pytorch_optimizer where both mean the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_optimizer.optimizer.gradient_centralization import centralize_gradient
from torch import nn

import trimtab
from tests.gradients.samples import Array, as_array, check, from_units, gradients, sample, units
from trimtab.gradients import Autoscale, Centralize, ZScore
from trimtab.parameters import Entry, Rule
from trimtab.tensors import passes


def centralized(entry: Entry, least: int = 2) -> Array:
    rows = units(entry, entry.parameter.grad)
    if entry.parameter.ndim < least or rows.size == 0:
        return as_array(entry.parameter.grad)
    return from_units(entry, rows - rows.mean(1, keepdims=True))


def z_scored(entry: Entry, granularity: str, eps: float) -> Array:
    rows = units(entry, entry.parameter.grad)
    if granularity == "tensor":
        rows = rows.reshape(1, -1)
    if entry.parameter.ndim < 2 or rows.shape[1] < 2:
        return as_array(entry.parameter.grad)
    rows = (rows - rows.mean(1, keepdims=True)) / (rows.std(1, ddof=1, keepdims=True) + eps)
    return from_units(entry, rows)


@pytest.mark.parametrize("conv_only", [False, True])
def test_centralize_equals_numpy(conv_only):
    entries = sample()
    expected = {entry.name: centralized(entry, 4 if conv_only else 2) for entry in entries}
    Centralize(conv_only=conv_only).before_step(entries)
    check(entries, expected)


@pytest.mark.parametrize("mean", [0.3, 1e3])
@pytest.mark.parametrize(("granularity", "eps"), [("tensor", 1e-12), ("channel", 1e-8), ("tensor", 0.5)])
def test_z_score_equals_numpy(granularity, eps, mean):
    entries = sample(mean=mean)
    expected = {entry.name: z_scored(entry, granularity, eps) for entry in entries}
    transform = ZScore(granularity, eps=eps) if eps == 0.5 else ZScore(granularity)
    assert transform.eps == eps
    transform.before_step(entries)
    # the mean rounds in float32: its error against a deviation a thousand times smaller is what is left
    check(entries, expected, relative=2e-5 if mean < 1 else 2e-3)


def test_centralize_equals_pytorch_optimizer_but_for_transposed_convolutions():
    entries = sample()
    peer = gradients(entries)
    for value in peer.values():
        if value.numel():
            centralize_gradient(value)
    Centralize().before_step(entries)
    different = [
        entry.name
        for entry in entries
        if not torch.allclose(
            entry.parameter.grad,
            peer[entry.name],
            rtol=1e-4,
            atol=1e-4 * float(peer[entry.name].abs().max()) if peer[entry.name].numel() else 0,
        )
    ]
    # known: the peer centres over dimension 0 whatever the layer is
    assert different == ["transposed convolution", "large transposed convolution"]


def test_the_output_axis_comes_from_the_model():
    net = nn.ConvTranspose2d(3, 5, 2, bias=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    trimtab.attach(optimizer, Centralize(), model=net)
    net.weight.grad = torch.randn_like(net.weight)
    optimizer.step()
    assert float(net.weight.grad.mean((0, 2, 3)).abs().max()) < 1e-6
    assert float(net.weight.grad.mean((1, 2, 3)).abs().max()) > 1e-3


@pytest.mark.parametrize("transform", [ZScore(), ZScore("channel"), Centralize()])
def test_what_is_not_finite_stays_where_it_is(transform):
    clean, dirty = sample(), sample()
    spoiled = {"small": float("nan"), "medium": float("inf"), "large": float("-inf")}
    for entry in dirty:
        if entry.name in spoiled:
            entry.parameter.grad[0, 0] = spoiled[entry.name]
    before = gradients(dirty)
    transform.before_step(clean)
    transform.before_step(dirty)
    by_channel = transform.settings().get("granularity") != "tensor"
    for one, other in zip(clean, dirty, strict=True):
        actual = other.parameter.grad
        if other.name in spoiled:
            row = actual[0] if by_channel else actual
            torch.testing.assert_close(row, before[other.name][0] if by_channel else before[other.name], equal_nan=True)
        if other.name in spoiled and by_channel:
            torch.testing.assert_close(actual[1:], one.parameter.grad[1:])
        elif other.name not in spoiled:
            torch.testing.assert_close(actual, one.parameter.grad)


def test_z_score_amplifies_a_tensor_of_low_variance():
    entries = sample()
    entries[0].parameter.grad.mul_(1e-6)
    before = float(entries[0].parameter.grad.norm())
    ZScore().before_step(entries)
    assert float(entries[0].parameter.grad.norm()) > 1e5 * before


@pytest.mark.parametrize("mean", [0.0, 30.0, 1e4])
def test_a_mean_far_above_the_deviation_is_taken_off_before_scaling(mean):
    """`factor * g - factor * mean` in one pass would round at the size of the mean, not of the deviation."""
    values = (mean + 3 * torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0))).view(200, 200)
    parameter = nn.Parameter(torch.zeros(200, 200))
    parameter.grad = values.clone()
    ZScore().before_step([Entry("w", parameter, 0)])
    exact = (values.double() - values.double().mean()) / values.double().std()
    away = parameter.grad.double() - exact
    # the mean itself is rounded to float32 once, the same for all entries
    assert float(away.mean().abs()) <= 6e-8 * (mean / 3 + 1)
    assert float((away - away.mean()).abs().max()) <= 1e-6


@pytest.mark.parametrize("mean", [0.0, 3.0, 1e4])
def test_autoscale_by_channel_takes_a_far_mean_off_before_scaling(mean):
    """Channels in one pass where nothing cancels, in two else; sigma is of all entries together, means of channels included."""
    values = mean * torch.tensor([1.0, -1.0, 0.0]).view(3, 1) + torch.randn(
        3, 500, generator=torch.Generator().manual_seed(0)
    )
    parameter = nn.Parameter(torch.zeros(3, 500))
    parameter.grad = values.clone()
    transform = Autoscale(lambda sigma, history: 0.3, granularity="channel")
    transform.before_step([Entry("w", parameter, 0)])
    exact = values.double()
    assert float(transform.signals()["sigma"]) == pytest.approx(float(exact.std(correction=0)), rel=1e-6)
    away = parameter.grad.double() - 0.3 * (exact - exact.mean(1, keepdim=True))
    assert float((away - away.mean(1, keepdim=True)).abs().max()) <= 3e-7
    assert float(away.mean(1).abs().max()) <= 6e-8 * (mean + 1)


def test_one_fused_pass_is_for_means_of_some_deviations_alone():
    """Where the processor rounds a product before it adds, the pass would err by the last digit of a far mean."""
    number = passes.FUSED_FROM + 1
    for mean, stays in ((0.5 * passes.FUSED, False), (2 * passes.FUSED, True)):
        gradient = mean + torch.randn(number, generator=torch.Generator().manual_seed(0))
        before = gradient.clone()
        left = passes._fused_on_cpu_([gradient], torch.tensor([mean]), torch.tensor([0.5]), torch.ones(1))
        assert left == ([0] if stays else [])
        torch.testing.assert_close(gradient, before if stays else 0.5 * (before - mean))


def test_settings_are_checked():
    with pytest.raises(ValueError, match="granularity must be one of 'tensor', 'channel', got 'row'"):
        ZScore("row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="eps must be finite and above 0, got -1"):
        ZScore(eps=-1.0)
    with pytest.raises(TypeError, match="conv_only must be True or False"):
        Centralize(conv_only=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="rule must be"):
        Centralize(rule="conv*")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit"):
        ZScore("channel").load_state_dict(ZScore("tensor").state_dict())
    restored = ZScore("channel")
    restored.load_state_dict(ZScore("channel").state_dict())
    assert repr(ZScore(rule=Rule(exclude=("head*",)))) == (
        "ZScore(granularity='tensor', eps=1e-12, min_ndim=2, exclude=('head*',))"
    )
    assert np.isclose(restored.eps, 1e-8)

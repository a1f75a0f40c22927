"""AdaptiveClip and ClipNorm against NumPy float64, pytorch_optimizer and torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pytorch_optimizer.optimizer.agc import agc
from torch import nn

import trimtab
from tests.gradients.samples import Array, as_array, check, from_units, gradients, sample, units
from trimtab.gradients import AdaptiveClip, ClipNorm
from trimtab.parameters import Entry, Rule
from trimtab.parameters import entries as entries_of


def clipped(entry: Entry, clip: float, eps: float) -> Array:
    weight, gradient = units(entry, entry.parameter), units(entry, entry.parameter.grad)
    norm = np.linalg.norm(gradient, axis=1, keepdims=True)
    limit = clip * np.maximum(np.linalg.norm(weight, axis=1, keepdims=True), eps)
    factor = np.where(norm > limit, limit / np.maximum(norm, 1e-6), 1.0)
    return from_units(entry, gradient * factor)


@pytest.mark.parametrize(("clip", "eps"), [(0.01, 1e-3), (0.5, 1e-3), (0.1, 4.0)])
def test_adaptive_clip_equals_numpy(clip, eps):
    entries = sample()
    expected = {entry.name: clipped(entry, clip, eps) for entry in entries}
    before = gradients(entries)
    AdaptiveClip(clip, eps, exclude_last_linear=False).before_step(entries)
    check(entries, expected)
    untouched = [entry.name for entry in entries if torch.equal(entry.parameter.grad, before[entry.name])]
    assert 1 < len(untouched) < len(entries)  # some are clipped, some are not


def test_signal_is_the_share_of_units_scaled_down():
    entries = sample()
    expected = [np.abs(clipped(entry, 0.1, 1e-3) - as_array(entry.parameter.grad)) > 1e-12 for entry in entries]
    scaled = sum(
        units(entry, torch.tensor(changed)).any(1).sum() for entry, changed in zip(entries, expected, strict=True)
    )
    total = sum(units(entry, entry.parameter).shape[0] for entry in entries)
    transform = AdaptiveClip(0.1, exclude_last_linear=False)
    assert transform.signals() == {}
    transform.before_step(entries)
    assert float(transform.signals()["clipped"]) == pytest.approx(scaled / total, abs=0.01)


KNOWN_DISAGREEMENTS = ["transposed convolution", "sequence", "large transposed convolution"]
"""The peer takes dimension 0 for the units of every layer, and the norm over dimension 1 alone for three-dimensional ones."""


def test_adaptive_clip_equals_pytorch_optimizer_but_for_known_axes():
    clip = 1e-7  # everything is clipped
    entries = [entry for entry in sample() if entry.parameter.numel()]
    peers = {entry.name: agc(entry.parameter.detach(), entry.parameter.grad, agc_clip_val=clip) for entry in entries}
    AdaptiveClip(clip, exclude_last_linear=False).before_step(entries)
    different = [
        entry.name
        for entry in entries
        if not torch.allclose(entry.parameter.grad, peers[entry.name], rtol=1e-4, atol=1e-12)
    ]
    assert different == KNOWN_DISAGREEMENTS


def test_the_last_linear_layer_is_left_out_and_only_it():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3), nn.LayerNorm(3))
    changed = {}
    for exclude in (True, False):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
        with trimtab.attach(optimizer, AdaptiveClip(exclude_last_linear=exclude), model=net):
            for parameter in net.parameters():
                parameter.grad = torch.ones_like(parameter)
            optimizer.step()
        changed[exclude] = {
            name
            for name, parameter in net.named_parameters()
            if not torch.equal(parameter.grad, torch.ones_like(parameter))
        }
    everything = {name for name, _ in net.named_parameters()}
    assert changed[False] == everything
    assert changed[True] == everything - {"2.weight", "2.bias"}


def test_an_unknown_last_linear_layer_is_an_error_not_a_silence():
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    for model in (net, None):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        trimtab.attach(optimizer, AdaptiveClip(), model=model)
        net(torch.ones(1, 3, 3, 3)).sum().backward()
        with pytest.raises(ValueError, match=r"last Linear.*pass model=.*exclude_last_linear=False"):
            optimizer.step()


def test_weights_of_zero_may_grow():
    parameter = nn.Parameter(torch.zeros(1, 2))
    parameter.grad = torch.tensor([[3.0, 4.0]])
    AdaptiveClip(clip=0.5, eps=0.1, exclude_last_linear=False).before_step([Entry("w", parameter, 0)])
    torch.testing.assert_close(parameter.grad, torch.tensor([[0.03, 0.04]]))


def test_a_gradient_below_the_floor_is_divided_by_the_floor():
    parameter = nn.Parameter(torch.zeros(1, 2))
    parameter.grad = torch.tensor([[3e-8, 4e-8]])
    AdaptiveClip(clip=1e-2, eps=1e-6, exclude_last_linear=False).before_step([Entry("w", parameter, 0)])
    # limit 1e-8, norm 5e-8, floor 1e-6: a factor of 0.01 where the norm alone gives 0.2
    torch.testing.assert_close(parameter.grad, torch.tensor([[3e-10, 4e-10]]), rtol=1e-6, atol=0)


def test_what_is_not_finite_stays_in_its_unit():
    clean, dirty = sample(), sample()
    for name, value in {"small": float("nan"), "medium": float("inf")}.items():
        entry = next(entry for entry in dirty if entry.name == name)
        entry.parameter.grad[1, 0] = value
    before = gradients(dirty)
    transform = AdaptiveClip(exclude_last_linear=False)
    transform.before_step(clean)
    transform.before_step(dirty)
    for one, other in zip(clean, dirty, strict=True):
        actual, wanted = other.parameter.grad, one.parameter.grad
        if other.name in ("small", "medium"):
            torch.testing.assert_close(actual[1], before[other.name][1], equal_nan=True)
            actual, wanted = actual[2:], wanted[2:]
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, math.inf])
def test_clip_norm_of_a_sparse_gradient_equals_that_of_a_dense_one(norm_type):
    found = []
    for sparse in (False, True):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Embedding(9, 3, sparse=sparse), nn.Linear(3, 2))
        net(torch.tensor([4, 1, 4, 4])).square().sum().backward()  # row 4 is stored three times
        assert net[0].weight.grad.is_sparse == sparse
        transform = ClipNorm(0.01, norm_type)
        transform.before_step(entries_of(net))
        assert net[0].weight.grad.is_sparse == sparse
        found.append([net[0].weight.grad.to_dense(), net[1].weight.grad, transform.signals()["norm"]])
    for dense, sparse in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-6, atol=0)


@pytest.mark.parametrize("norm_type", [1.0, 2.0, 3.5, math.inf])
@pytest.mark.parametrize("max_norm", [0.1, 1e7])
def test_clip_norm_equals_torch(norm_type, max_norm):
    ours, theirs = sample(), sample()
    parameters = [entry.parameter for entry in theirs if entry.parameter.numel()]
    for parameter in parameters:  # torch in float64: its float32 norm is off by 6e-5 for p = 3.5
        parameter.data, parameter.grad = parameter.data.double(), parameter.grad.double()
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
    transform = ClipNorm(max_norm, norm_type)
    assert transform.signals() == {}
    transform.before_step(ours)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.parameter.grad, other.parameter.grad.float(), rtol=1e-6, atol=0)
    assert float(transform.signals()["norm"]) == pytest.approx(float(norm), rel=1e-7)
    expected = min(1.0, max_norm / (float(norm) + 1e-6))
    assert float(transform.signals()["factor"]) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_clip_norm_leaves_a_step_that_is_not_finite_as_it_is(bad):
    entries = sample()
    entries[0].parameter.grad[0, 0] = bad
    before = gradients(entries)
    ClipNorm(1e-3).before_step(entries)
    for entry in entries:
        torch.testing.assert_close(entry.parameter.grad, before[entry.name], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("transform", [ClipNorm(1.0), AdaptiveClip(exclude_last_linear=False)])
def test_halves_are_computed_in_float32(transform, dtype):
    halves, singles = sample(dtype=dtype), sample(dtype=dtype)
    for entry in singles:
        entry.parameter.data = entry.parameter.data.float()
        entry.parameter.grad = entry.parameter.grad.float()
    transform.before_step(halves)
    transform.before_step(singles)
    for half, single in zip(halves, singles, strict=True):
        assert half.parameter.grad.dtype == dtype
        torch.testing.assert_close(
            half.parameter.grad.float(), single.parameter.grad, rtol=1.01 * torch.finfo(dtype).eps, atol=1e-7
        )


def test_biases_and_scales_are_clipped_by_default_and_a_rule_says_otherwise():
    assert ClipNorm(1.0).rule == Rule(min_ndim=0)
    net = nn.Linear(3, 2)
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    ClipNorm(0.1, rule=Rule()).before_step(entries_of(net))
    assert float(net.weight.grad.norm()) == pytest.approx(0.1, rel=1e-5)
    assert torch.equal(net.bias.grad, torch.ones(2))


def test_settings_are_checked():
    for settings in ({"max_norm": 0.0}, {"max_norm": float("nan")}, {"max_norm": 1.0, "norm_type": -2.0}):
        with pytest.raises(ValueError, match="must be finite and above 0"):
            ClipNorm(**settings)
    with pytest.raises(TypeError, match="max_norm must be a number"):
        ClipNorm("1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="clip must be finite and above 0, got 0"):
        AdaptiveClip(0.0)
    with pytest.raises(TypeError, match="exclude_last_linear must be True or False"):
        AdaptiveClip(exclude_last_linear="head")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit"):
        ClipNorm(1.0).load_state_dict(ClipNorm(2.0).state_dict())

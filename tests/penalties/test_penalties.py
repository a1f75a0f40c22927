"""Definitions by hand, selection, readings, state, warnings and bad input of the three penalties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from trimtab.parameters import Rule
from trimtab.penalties import L1, HoyerSquare, Penalty, VarianceAmplifier

WEIGHT = np.array([[0.1, -0.3, 0.25], [0.2, 0.4, -0.05]])


def parameter() -> nn.Parameter:
    return nn.Parameter(torch.tensor(WEIGHT))


def smoothed(r: float) -> np.ndarray:
    return np.sqrt(WEIGHT**2 + r)


@pytest.mark.parametrize("r", [0.0, 1e-8, 0.01])
def test_three_forms_are_what_they_say(r):
    magnitude = smoothed(r)
    expected = {
        "variance": 1 / (magnitude.var() + 1e-3),
        "relative": magnitude.mean() ** 2 / (magnitude.var() + 1e-3),
        "as_printed": 1 / (magnitude.mean() - magnitude.mean() ** 2 + 1e-3),
    }
    for form, value in expected.items():
        penalty = VarianceAmplifier(0.5, form=form, r=r, eps=1e-3)
        assert penalty.value([parameter()]).item() == pytest.approx(0.5 * value, rel=1e-12)
        assert penalty.per_layer([parameter()])["group0.0"] == pytest.approx(value, rel=1e-12)


def test_as_printed_is_another_penalty_than_variance():
    printed, variance = (VarianceAmplifier(1.0, form=form) for form in ("as_printed", "variance"))
    assert printed.value([parameter()]).item() < 0.2 * variance.value([parameter()]).item()
    # and pulls the other way: it grows all weights (mean below one half) where the variance form shrinks the small ones
    weights = []
    for penalty in (printed, variance):
        weight = parameter()
        weight.grad = torch.zeros_like(weight)
        penalty.add_gradient_([weight])
        weights.append(weight)
    outward = [bool((-weight.grad * weight.sign() > 0).all()) for weight in weights]
    assert outward == [True, False]


def test_variance_is_biased():
    two = nn.Parameter(torch.tensor([[1.0, 3.0]], dtype=torch.float64))
    # biased variance 1, unbiased 2
    assert VarianceAmplifier(1.0, r=0.0, eps=1e-12).per_layer([two])["group0.0"] == pytest.approx(1.0)


def test_baselines_are_what_they_say():
    absolute = np.abs(WEIGHT)
    assert L1(2.0).value([parameter()]).item() == pytest.approx(2 * absolute.sum())
    assert HoyerSquare(2.0).value([parameter()]).item() == pytest.approx(2 * absolute.sum() ** 2 / (WEIGHT**2).sum())


def test_published_size_of_the_term():
    """Gaussian weights of deviation s: V = s^2 (1 - 2 / pi)."""
    weight = nn.Parameter(0.05 * torch.randn(400, 400, generator=torch.Generator().manual_seed(0)))
    expected = 1e-5 / (0.05**2 * (1 - 2 / math.pi))
    assert VarianceAmplifier().value([weight]).item() == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("penalty", [VarianceAmplifier(1.0), L1(1.0), HoyerSquare(1.0)], ids=lambda p: type(p).__name__)
def test_norm_scales_and_biases_are_left_out_and_tied_weights_counted_once(penalty):
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    tied = nn.Sequential(net[0], net[1], nn.Linear(4, 4, bias=False))
    tied[2].weight = net[0].weight
    assert list(penalty.per_layer(net)) == ["0.weight", "2.weight"]
    assert list(penalty.per_layer(tied)) == ["0.weight"]
    by_names = type(penalty)(1.0, rule=Rule(exclude=("2.*",)))
    assert list(by_names.per_layer(net)) == ["0.weight"]
    for item in tied.parameters():
        item.grad = torch.zeros_like(item)
    penalty.add_gradient_(tied)
    once = nn.Parameter(net[0].weight.detach().clone())
    once.grad = torch.zeros_like(once)
    penalty.add_gradient_([once])
    assert torch.equal(tied[0].weight.grad, once.grad)
    assert float(net[1].weight.grad.abs().sum()) == 0


def test_takes_model_optimizer_pairs_and_tensors_alike():
    net = nn.Linear(5, 4)
    sources = [net, torch.optim.SGD(net.parameters()), list(net.named_parameters()), net.parameters()]
    values = {VarianceAmplifier(1.0).value(source).item() for source in sources}
    assert len(values) == 1


def test_exceeds_warns_once_and_names_the_layer():
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    nn.init.normal_(net[1].weight, std=1e-4)
    penalty = VarianceAmplifier(1e-5)
    with pytest.warns(UserWarning, match=r"more than 10 times.*1\.weight"):
        assert penalty.exceeds(torch.tensor(2.3), net)
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert penalty.exceeds(2.3, net)
        assert not VarianceAmplifier(1e-12).exceeds(2.3, net)
        assert not VarianceAmplifier(1e-12).exceeds(-2.3, net)  # a loss may be negative: its size counts
    with pytest.warns(UserWarning, match="more than"):
        assert VarianceAmplifier(1e-5).exceeds(2.3, net, factor=1.0)


def test_non_finite_weights_are_reported_as_exceeding():
    net = nn.Linear(2, 2)
    nn.init.constant_(net.weight, float("nan"))
    with pytest.warns(UserWarning, match="nan"):
        assert L1(1.0).exceeds(1.0, net)


def test_state_restores_the_strength_and_refuses_other_settings():
    saved = VarianceAmplifier(3e-4, form="relative").state_dict()
    restored = VarianceAmplifier(1e-5, form="relative")
    restored.load_state_dict(saved)
    assert restored.strength == 3e-4
    with pytest.raises(ValueError, match="does not fit"):
        VarianceAmplifier(3e-4).load_state_dict(saved)
    with pytest.raises(ValueError, match="does not fit"):
        L1(1.0).load_state_dict(saved)
    with pytest.raises(ValueError, match="does not fit"):
        L1(1.0).load_state_dict({})


def test_repr_says_everything():
    assert repr(L1(1e-4)) == "L1(strength=0.0001, min_ndim=2)"
    penalty = HoyerSquare(1.0, rule=Rule(min_ndim=1, exclude=("head.*",), frozen=True))
    assert repr(penalty) == "HoyerSquare(strength=1, min_ndim=1, exclude=('head.*',), frozen=True)"


@pytest.mark.parametrize("make", [VarianceAmplifier, L1, HoyerSquare])
@pytest.mark.parametrize("strength", [-1e-5, math.nan, math.inf])
def test_bad_strength(make, strength):
    with pytest.raises(ValueError, match="strength must be finite and 0 or more"):
        make(strength)


@pytest.mark.parametrize("strength", [np.float32(0.25), np.float64(0.25), np.int64(3)])
def test_numbers_of_numpy(strength):
    penalty = VarianceAmplifier(strength, r=np.float32(0.5), eps=np.float64(1))
    assert all(type(number) is float for number in (penalty.strength, penalty.r, penalty.eps))
    assert penalty.strength == strength


@pytest.mark.parametrize("strength", [True, np.True_, "1", None, torch.tensor(1.0), 1j])
def test_what_is_no_number(strength):
    with pytest.raises(TypeError, match="strength must be a number"):
        L1(strength)


def test_other_bad_input():
    with pytest.raises(TypeError, match="strength must be a number"):
        L1("1e-4")
    with pytest.raises(ValueError, match="form must be one of 'variance', 'relative', 'as_printed', got 'std'"):
        VarianceAmplifier(form="std")
    with pytest.raises(ValueError, match="r must be"):
        VarianceAmplifier(r=-1.0)
    with pytest.raises(ValueError, match="eps must be above 0"):
        VarianceAmplifier(eps=0.0)
    with pytest.raises(TypeError, match="rule must be"):
        L1(1.0, rule="conv*")
    with pytest.raises(TypeError, match="abstract"):
        Penalty(1.0)


def test_nothing_to_penalise_is_an_error_that_says_why():
    net = nn.BatchNorm1d(3)
    for call in (L1(1.0).value, L1(1.0).add_gradient_, L1(1.0).per_layer):
        with pytest.raises(ValueError, match=r"nothing to penalise among 2 .*fewer than 2"):
            call(net)


def test_strength_zero_changes_nothing():
    weight = parameter()
    weight.grad = torch.full_like(weight, 2.0)
    VarianceAmplifier(0.0).add_gradient_([weight])
    assert bool((weight.grad == 2).all())

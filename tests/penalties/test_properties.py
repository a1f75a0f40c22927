"""What must hold for any weights: scale, order, direction, and how the penalties relate to one another."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from trimtab.penalties import L1, HoyerSquare, VarianceAmplifier

quick = settings(max_examples=30, deadline=None)


@st.composite
def weights(draw: st.DrawFn, least: float = 0.05) -> Tensor:
    """A float64 matrix whose magnitudes lie in [least, 2] and are not all alike."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    seed = draw(st.integers(0, 2**31))
    generator = torch.Generator().manual_seed(seed)
    magnitude = least + (2 - least) * torch.rand(rows, columns, dtype=torch.float64, generator=generator)
    sign = torch.randint(0, 2, (rows, columns), generator=generator) * 2 - 1
    assume(float(magnitude.var(correction=0)) > 1e-3)
    return magnitude * sign


def psi(penalty: VarianceAmplifier | L1 | HoyerSquare, weight: Tensor) -> float:
    return penalty.per_layer([("weight", nn.Parameter(weight))])["weight"]


def gradient(penalty: VarianceAmplifier | L1 | HoyerSquare, weight: Tensor) -> Tensor:
    parameter = nn.Parameter(weight.clone())
    parameter.grad = torch.zeros_like(parameter)
    penalty.add_gradient_([parameter])
    return parameter.grad


RELATIVE = VarianceAmplifier(1.0, form="relative", r=1e-14, eps=1e-14)
FORMS = ("variance", "relative", "as_printed")
ALL = [*(VarianceAmplifier(1.0, form=form) for form in FORMS), L1(1.0), HoyerSquare(1.0)]


@quick
@given(weights(), st.floats(0.1, 30))
def test_relative_form_and_hoyer_square_do_not_see_scale(weight, scale):
    for penalty in (RELATIVE, HoyerSquare(1.0)):
        assert psi(penalty, weight * scale) == pytest.approx(psi(penalty, weight), rel=1e-6)
        # an objective blind to scale has a gradient at right angles to the weights
        slope = gradient(penalty, weight)
        assert abs(float((slope * weight).sum())) <= 1e-6 * float(slope.norm() * weight.norm()) + 1e-12


@quick
@given(weights(), st.floats(2, 30))
def test_variance_form_does_see_scale(weight, scale):
    penalty = VarianceAmplifier(1.0)
    assert psi(penalty, weight * scale) == pytest.approx(psi(penalty, weight) / scale**2, rel=1e-3)


@quick
@given(weights(), st.sampled_from(["variance", "relative"]))
def test_a_step_down_the_gradient_raises_the_spread_of_magnitudes(weight, form):
    penalty = VarianceAmplifier(1.0, form=form)
    slope = gradient(penalty, weight)
    moved = weight - 1e-4 * slope / slope.norm()

    def spread(tensor: Tensor) -> float:
        magnitude = tensor.abs()
        variance = magnitude.var(correction=0)
        return float(variance if form == "variance" else variance / magnitude.mean() ** 2)

    assert spread(moved) > spread(weight)


@quick
@given(weights())
def test_variance_form_grows_large_weights_and_shrinks_small_ones(weight):
    slope = gradient(VarianceAmplifier(1.0), weight)
    outward = -slope * weight.sign() > 0
    assert torch.equal(outward, weight.abs() > weight.abs().mean())


@quick
@given(weights(least=0.0), st.randoms(use_true_random=False))
def test_order_and_signs_do_not_matter(weight, random):
    order = list(range(weight.numel()))
    random.shuffle(order)
    moved = weight.flatten()[order].view_as(weight)
    for penalty in ALL:
        assert psi(penalty, moved) == pytest.approx(psi(penalty, weight), rel=1e-9)
        assert psi(penalty, -weight) == pytest.approx(psi(penalty, weight), rel=1e-9)
        torch.testing.assert_close(gradient(penalty, moved), gradient(penalty, weight).flatten()[order].view_as(weight))
        torch.testing.assert_close(gradient(penalty, -weight), -gradient(penalty, weight))


@quick
@given(weights())
def test_hoyer_square_is_n_over_one_plus_cv_squared(weight):
    inverse_cv_squared = psi(RELATIVE, weight)
    expected = weight.numel() / (1 + 1 / inverse_cv_squared)
    assert psi(HoyerSquare(1.0), weight) == pytest.approx(expected, rel=1e-6)
    assert 1 - 1e-9 <= psi(HoyerSquare(1.0), weight) <= weight.numel() + 1e-9


@quick
@given(weights())
def test_psi_is_a_sum_over_tensors(weight):
    other = weight.flip(0) * 0.5
    parameters = [("a", nn.Parameter(weight)), ("b", nn.Parameter(other))]
    for penalty in ALL:
        layers = penalty.per_layer(parameters)
        total = penalty.value(parameters).item()
        assert sum(layers.values()) == pytest.approx(total, rel=1e-9)
        # per tensor, not over all weights pooled
        if not isinstance(penalty, L1):
            pooled = psi(penalty, torch.cat([weight, other]))
            assert total != pytest.approx(pooled, rel=1e-6)

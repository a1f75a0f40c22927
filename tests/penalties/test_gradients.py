"""The closed-form gradient against autograd, finite differences and itself in other layouts and dtypes."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trimtab.penalties import L1, HoyerSquare, Penalty, VarianceAmplifier
from trimtab.tensors import chunks

PENALTIES: dict[str, Callable[[float], Penalty]] = {
    "variance": lambda strength: VarianceAmplifier(strength),
    "relative": lambda strength: VarianceAmplifier(strength, form="relative"),
    "as_printed": lambda strength: VarianceAmplifier(strength, form="as_printed"),
    "unsmoothed": lambda strength: VarianceAmplifier(strength, r=0.0),
    "l1": lambda strength: L1(strength),
    "hoyer": lambda strength: HoyerSquare(strength),
}


@pytest.fixture(params=PENALTIES)
def make(request: pytest.FixtureRequest) -> Callable[[float], Penalty]:
    return PENALTIES[request.param]


def tensors(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    shapes_and_scales = [((7, 5), 0.3), ((4, 3, 3, 3), 0.02), ((2, 3, 1), 1.0)]
    return [
        nn.Parameter((torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype))
        for shape, scale in shapes_and_scales
    ]


def by_autograd(penalty: Penalty, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Reference: autograd through `value` in float64."""
    exact = [parameter.detach().double().requires_grad_() for parameter in parameters]
    return list(torch.autograd.grad(penalty.value(exact), exact))


def closed_form(penalty: Penalty, parameters: list[nn.Parameter]) -> list[Tensor]:
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    penalty.add_gradient_(parameters)
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def assert_near(actual: Tensor, expected: Tensor, relative: float) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), rtol=0, atol=relative * float(expected.abs().max()))


def test_equals_autograd_in_float64(make):
    penalty = make(0.7)
    for actual, expected in zip(closed_form(penalty, tensors()), by_autograd(penalty, tensors()), strict=True):
        assert_near(actual, expected, 1e-11)


def test_equals_finite_differences(make):
    penalty = make(0.7)
    for parameter in tensors():
        (actual,) = closed_form(penalty, [parameter])
        weight = parameter.detach().clone()
        step = 1e-6 * float(weight.abs().mean())
        numeric = torch.zeros_like(weight).view(-1)
        for index in range(weight.numel()):
            sides = []
            for sign in (1, -1):
                moved = weight.clone()
                moved.view(-1)[index] += sign * step
                sides.append(penalty.value([moved.requires_grad_()]).item())
            numeric[index] = (sides[0] - sides[1]) / (2 * step)
        assert_near(actual, numeric.view_as(actual), 1e-5)


@pytest.mark.parametrize(
    ("dtype", "relative"), [(torch.float32, 1e-5), (torch.bfloat16, 2**-8), (torch.float16, 2**-11)]
)
def test_low_precision_is_computed_in_float32_and_rounded_once(make, dtype, relative):
    penalty = make(1e-3)
    parameters = tensors(dtype)
    for actual, expected in zip(closed_form(penalty, parameters), by_autograd(penalty, parameters), strict=True):
        assert actual.dtype == dtype
        # one rounding to nearest (among fp16's subnormals an absolute one), plus what float32 itself loses
        subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        bound = relative * expected.abs() + subnormal + 1e-5 * expected.abs().max()
        assert bool(((actual.double() - expected).abs() <= bound).all())


def test_adds_to_what_is_there(make):
    (parameter,) = tensors()[:1]
    (alone,) = closed_form(make(0.5), [parameter])
    parameter.grad = torch.full_like(parameter, 2.0)
    make(0.5).add_gradient_([parameter])
    torch.testing.assert_close(parameter.grad, alone + 2)


def test_pieces_and_layouts_do_not_change_the_result(make, monkeypatch):
    whole = closed_form(make(0.5), tensors())
    monkeypatch.setattr(chunks, "BATCH_ON_CPU", 32)
    for actual, expected in zip(closed_form(make(0.5), tensors()), whole, strict=True):
        assert_near(actual, expected, 1e-11)
    layouts = (torch.channels_last, torch.contiguous_format)
    for of_weight, of_gradient in itertools.product(layouts, layouts):
        parameter = nn.Parameter(tensors()[1].detach().to(memory_format=of_weight))
        parameter.grad = torch.zeros_like(parameter, memory_format=of_gradient)
        make(0.5).add_gradient_([parameter])
        assert_near(parameter.grad, whole[1], 1e-11)
    # every second column of a wider matrix: neither weight nor gradient can be viewed flat
    wide = torch.zeros(7, 10, dtype=torch.float64)
    wide[:, ::2] = tensors()[0].detach()
    parameter = nn.Parameter(wide[:, ::2])
    parameter.grad = torch.zeros_like(wide)[:, ::2]
    make(0.5).add_gradient_([parameter])
    assert_near(parameter.grad, whole[0], 1e-11)


def test_mixed_dtypes_are_each_computed_in_their_own(make):
    mixed = [item if number else nn.Parameter(item.detach().float()) for number, item in enumerate(tensors())]
    expected = by_autograd(make(0.5), mixed)
    for actual, reference, relative in zip(closed_form(make(0.5), mixed), expected, (1e-5, 1e-11, 1e-11), strict=True):
        assert_near(actual, reference, relative)


@pytest.mark.parametrize("form", ["variance", "relative"])
def test_mean_far_above_the_deviation_does_not_cancel(form):
    exact = 100 + 1e-2 * torch.randn(200, 200, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    parameter = nn.Parameter(exact.float())
    penalty = VarianceAmplifier(1.0, form=form, eps=1e-12)
    (reference,) = by_autograd(penalty, [parameter])
    psi = penalty.value([parameter.detach().double().requires_grad_()]).item()
    assert penalty.per_layer([parameter])["group0.0"] == pytest.approx(psi, rel=1e-4)
    (actual,) = closed_form(penalty, [parameter])
    # float32 holds 100 +- 0.01 to 4e-6, so each magnitude is known to 4e-4 of the deviation
    assert_near(actual, reference, 1e-3)
    # E[x^2] - E[x]^2 in float32 would not even have one digit right
    naive = parameter.detach().square().mean() - parameter.detach().mean().square()
    assert abs(float(naive) - 1e-4) > 1e-4


def test_equal_magnitudes_have_gradient_zero_in_the_variance_form():
    parameter = nn.Parameter(torch.full((100, 100), 0.1))
    (actual,) = closed_form(VarianceAmplifier(1e-5), [parameter])
    assert float(actual.abs().max()) < 1e-6


def test_zero_weights_get_no_gradient_and_no_nan(make):
    weight = torch.zeros(3, 4)
    weight[0, 0] = 0.5
    parameter = nn.Parameter(weight)
    (actual,) = closed_form(make(1e-3), [parameter])
    assert bool(torch.isfinite(actual).all())
    assert bool((actual.view(-1)[1:] == 0).all())
    (expected,) = by_autograd(make(1e-3), [parameter])
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-8)


def test_layer_of_zeros_is_finite(make):
    parameter = nn.Parameter(torch.zeros(3, 4))
    (actual,) = closed_form(make(1e-3), [parameter])
    assert bool((actual == 0).all())
    assert bool(torch.isfinite(make(1e-3).value([parameter])))


def test_parameter_without_gradient_is_left_alone(make):
    with_gradient, without = tensors()[:2]
    with_gradient.grad = torch.zeros_like(with_gradient)
    make(0.5).add_gradient_([with_gradient, without])
    assert without.grad is None
    assert float(with_gradient.grad.abs().sum()) > 0


def test_empty_shard_adds_nothing():
    shard = nn.Parameter(torch.zeros(0, 4))
    full = nn.Parameter(torch.randn(3, 4))
    shard.grad, full.grad = torch.zeros_like(shard), torch.zeros_like(full)
    VarianceAmplifier(1e-3).add_gradient_([full, shard])
    assert bool(torch.isfinite(full.grad).all())
    assert float(full.grad.abs().sum()) > 0


@pytest.mark.parametrize("name", PENALTIES)
def test_fifty_steps_by_both_forms_end_at_the_same_weights(name):
    """Reference form (autograd of value, float64) beside the attached form in float64 and float32."""
    strength = {"variance": 1e-6, "relative": 1e-2, "as_printed": 1e-3, "unsmoothed": 1e-6}.get(name, 1e-3)

    def train(dtype: torch.dtype, *, closed: bool) -> Tensor:
        torch.manual_seed(1)
        net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).to(torch.float64).to(dtype)
        inputs = torch.randn(50, 16, 6, dtype=torch.float64).to(dtype)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        penalty = PENALTIES[name](strength)
        for batch in inputs:
            optimizer.zero_grad()
            loss = net(batch).square().mean() + batch.mean() * net(batch).mean()
            (loss if closed else loss + penalty.value(net)).backward()
            if closed:
                penalty.add_gradient_(net)
            optimizer.step()
        return torch.cat([parameter.detach().double().flatten() for parameter in net.parameters()])

    reference = train(torch.float64, closed=False)
    torch.testing.assert_close(train(torch.float64, closed=True), reference, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(train(torch.float32, closed=True), reference, rtol=1e-3, atol=1e-4)

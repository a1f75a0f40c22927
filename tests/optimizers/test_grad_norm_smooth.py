"""GradNormSmooth: the sheet's numbers, logistic regression, operators, and what it refuses."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.observe.curvature import GaussNewton, Objective
from trimtab.optimizers import GradNormSmooth

D, SLOPE = torch.tensor([1.0, 10.0, 100.0]).double(), torch.tensor([1.0, -2.0, 3.0]).double()


def quadratic(**settings: Any) -> tuple[Tensor, GradNormSmooth, Callable[[], Tensor]]:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    return x, GradNormSmooth([x], **settings), lambda: 0.5 * (D * x * x).sum() - (SLOPE * x).sum()


def test_four_steps_equal_the_sheets_numbers() -> None:
    x, optimizer, closure = quadratic()
    losses = [float(optimizer.step(closure)) for _ in range(4)] + [closure().item()]
    assert x.tolist() == pytest.approx([0.999969789, -0.1999999969, 0.03], rel=1e-8)
    assert losses == pytest.approx(
        [0.0, -0.4187715673, -0.7119957586, -0.7448789261, -0.7449999995], rel=1e-9, abs=1e-12
    )
    assert optimizer.gamma == 16.0


def test_a_step_that_falls_too_little_halves_gamma() -> None:
    """Gamma far too large makes Newton's step, which from here leads up."""
    x = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    optimizer = GradNormSmooth([x], gamma=1e6)

    def closure() -> Tensor:
        return (x.exp() + (-x).exp()).log().sum()  # log cosh: Newton from 1.5 overshoots

    first = float(optimizer.step(closure))
    assert optimizer.gamma < 1e6
    assert closure().item() < first
    for _ in range(12):
        optimizer.step(closure)
    assert abs(x.item()) < 1e-8


def logistic() -> tuple[nn.Linear, Tensor, Tensor]:
    torch.manual_seed(1)
    inputs = torch.randn(40, 5, dtype=torch.float64)
    labels = (inputs @ torch.randn(5, dtype=torch.float64) + 0.5 * torch.randn(40, dtype=torch.float64) > 0).double()
    net = nn.Linear(5, 1, bias=False).double()
    nn.init.zeros_(net.weight)
    return net, inputs, labels


def objective(net: nn.Linear, inputs: Tensor, labels: Tensor) -> Tensor:
    found = nn.functional.binary_cross_entropy_with_logits(net(inputs).squeeze(1), labels)
    return found + 1e-3 * net.weight.square().sum()


@pytest.mark.parametrize("solver", ["dense", "cg"])
def test_logistic_regression_is_solved_in_few_steps(solver: Any) -> None:
    net, inputs, labels = logistic()
    optimizer = GradNormSmooth(net.parameters(), solver=solver, tolerance=1e-8)
    for _ in range(20):
        optimizer.step(lambda: objective(net, inputs, labels))
    (gradient,) = torch.autograd.grad(objective(net, inputs, labels), [net.weight])
    assert float(gradient.norm()) < 1e-8


def test_a_curvature_of_ones_own_is_used() -> None:
    net, inputs, labels = logistic()

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(1), targets)

    own = GradNormSmooth(net.parameters(), curvature=lambda: GaussNewton(Objective(net, loss, (inputs, labels))))
    other = copy.deepcopy(net)
    plain = GradNormSmooth(other.parameters())
    for _ in range(3):  # the Gauss-Newton matrix of a linear model is its Hessian
        own.step(lambda: loss(net(inputs), labels))
        plain.step(lambda: loss(other(inputs), labels))
    torch.testing.assert_close(net.weight, other.weight, rtol=1e-6, atol=1e-8)


def test_where_nothing_falls_enough_weights_and_gamma_stay() -> None:
    x, optimizer, closure = quadratic()
    for _ in range(30):
        optimizer.step(closure)
    assert optimizer.stalled  # at machine precision
    before, gamma = x.detach().clone(), optimizer.gamma
    optimizer.step(closure)
    assert torch.equal(x, before)
    assert optimizer.gamma == gamma


def test_a_saddle_is_left_downwards() -> None:
    x = torch.tensor([0.5, 0.1], dtype=torch.float64, requires_grad=True)

    def closure() -> Tensor:  # the second axis curves down near zero
        return x[0] ** 2 - x[1] ** 2 + x[1] ** 4

    for solver in ("dense", "cg"):
        with torch.no_grad():
            x.copy_(torch.tensor([0.5, 0.1]))
        optimizer = GradNormSmooth([x], gamma=10.0, solver=solver)  # type: ignore[arg-type]
        for _ in range(40):
            optimizer.step(closure)
        assert x.tolist() == pytest.approx([0.0, 0.5**0.5], abs=1e-5)


def test_it_goes_on_from_a_saved_state() -> None:
    x, optimizer, closure = quadratic()
    optimizer.step(closure)
    y, again, other = quadratic()
    with torch.no_grad():
        y.copy_(x)
    again.load_state_dict(optimizer.state_dict())
    optimizer.step(closure)
    again.step(other)
    assert torch.equal(x, y)
    assert again.gamma == optimizer.gamma


def test_what_it_refuses() -> None:
    x, optimizer, closure = quadratic()
    counter = itertools.count()
    with pytest.raises(ValueError, match="two calls of the closure at the same weights"):
        optimizer.step(lambda: closure() + next(counter))
    with pytest.raises(TypeError, match="must return the loss as a tensor, without calling backward"):
        optimizer.step(lambda: closure().detach())
    with pytest.raises(TypeError, match="needs a closure"):
        optimizer.step(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no lever or hook can act"):
        trimtab.attach(optimizer, trimtab.penalties.L1(0.1))
    with pytest.raises(ValueError, match="one group"):
        GradNormSmooth([{"params": [x]}, {"params": [nn.Parameter(torch.zeros(1))]}])
    with pytest.raises(ValueError, match="from 5000 on use 'cg'"):
        GradNormSmooth([nn.Parameter(torch.zeros(80, 80))])
    bad = torch.tensor([0.0], requires_grad=True)
    with pytest.raises(FloatingPointError, match="at the present weights"):
        GradNormSmooth([bad]).step(lambda: bad.sum() / 0 * 1.0 + bad.sum().log())

"""Sharpness against closed forms, SAM's own step and a search of the ball."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.observe.curvature.networks import CROSS_ENTROPY, labels, network
from trimtab.observe.curvature import Hessian, Objective, relative, sharpness, top_eigenvalues
from trimtab.optimizers import SAM


def bowl(weights: list[float], curvature: list[float]) -> Objective:
    """L(w) = 1/2 sum_i c_i w_i^2."""
    net = nn.Linear(len(weights), 1, bias=False).double()
    net.weight.data.copy_(torch.tensor([weights]))
    c = torch.tensor(curvature, dtype=torch.float64)
    return Objective(net, lambda o, t: 0.5 * (c * o.reshape(-1).square()).sum(), (torch.diag(torch.ones(len(c))), c))


def test_one_step_by_hand() -> None:
    objective = bowl([1.0, 2.0], [3.0, 1.0])
    g = torch.tensor([3.0, 2.0])
    w = torch.tensor([1.0, 2.0]) + 0.1 * g / g.norm()
    expected = float(0.5 * (torch.tensor([3.0, 1.0]) * w.square()).sum()) - 3.5
    found = sharpness(objective, rho=0.1)
    assert found.value == pytest.approx(expected, rel=1e-6)
    assert found.loss == 3.5
    assert found.gradient_norm == pytest.approx(math.sqrt(13))


def test_one_step_adaptive_by_hand() -> None:
    g, w = torch.tensor([3.0, 2.0]), torch.tensor([1.0, 2.0])
    moved = w + 0.1 * w.square() * g / (w * g).norm()
    expected = float(0.5 * (torch.tensor([3.0, 1.0]) * moved.square()).sum()) - 3.5
    assert sharpness(bowl([1.0, 2.0], [3.0, 1.0]), rho=0.1, adaptive=True).value == pytest.approx(expected, rel=1e-6)


def test_one_step_is_where_sam_goes() -> None:
    net, inputs = network("tanh")
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = CROSS_ENTROPY(net(inputs), labels())
        loss.backward()
        losses.append(loss.item())
        return loss

    found = sharpness(Objective(net, CROSS_ENTROPY, (inputs, labels())), rho=0.3)
    optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.0), rho=0.3)
    optimizer.step(closure)
    assert found.value == pytest.approx(losses[1] - losses[0], rel=1e-9)


def test_several_steps_find_the_maximum_that_one_step_misses() -> None:
    objective = bowl([1.0, 0.1], [1.0, 5.0])  # the gradient points at the flat axis, the steep one gives more
    rho = 0.5
    angle = torch.linspace(0, 2 * math.pi, 100_001, dtype=torch.float64)
    ring = torch.stack([1.0 + rho * angle.cos(), 0.1 + rho * angle.sin()])
    best = float((0.5 * (torch.tensor([[1.0], [5.0]]) * ring.square()).sum(0)).max()) - objective.loss()
    one, many = sharpness(objective, rho), sharpness(objective, rho, steps=40)
    assert one.value < 0.95 * best
    assert many.value == pytest.approx(best, rel=1e-3)
    assert many.value <= best * (1 + 1e-6)
    assert many.one_step == one.value
    assert many.gradients == 40


def test_more_steps_never_give_less() -> None:
    net, inputs = network("relu")
    objective = Objective(net, CROSS_ENTROPY, (inputs, labels()))
    for adaptive in (False, True):
        values = [sharpness(objective, 0.5, steps, adaptive=adaptive) for steps in (1, 3, 8)]
        assert all(found.value >= found.one_step - 1e-15 for found in values)


def test_at_a_minimum_it_is_half_rho_squared_times_the_top_eigenvalue() -> None:
    objective = bowl([1e-9, 1e-9], [4.0, 1.0])
    top = top_eigenvalues(Hessian(objective)).values[0]
    assert sharpness(objective, 0.01, steps=30).value == pytest.approx(0.5 * 0.01**2 * top, rel=1e-4)


def test_adaptive_measures_do_not_see_a_rescaling_that_leaves_the_function() -> None:
    net, inputs = network("relu")
    objective = Objective(net, CROSS_ENTROPY, (inputs, labels()))
    raw, relatively = sharpness(objective, 0.1).value, sharpness(objective, 0.1, 5, adaptive=True).value
    curved = top_eigenvalues(relative(Hessian(objective)), tolerance=1e-8).values[0]
    with torch.no_grad():
        net[0].weight.mul_(8)
        net[0].bias.mul_(8)
        net[2].weight.div_(8)
    scaled = Objective(net, CROSS_ENTROPY, (inputs, labels()))
    assert sharpness(scaled, 0.1, 5, adaptive=True).value == pytest.approx(relatively, rel=1e-9)
    assert top_eigenvalues(relative(Hessian(scaled)), tolerance=1e-8).values[0] == pytest.approx(curved, rel=1e-9)
    assert abs(sharpness(scaled, 0.1).value / raw - 1) > 0.05


def test_pruned_weights_stay_zero_when_adaptive() -> None:
    """Only the second weight could raise the loss, and it is zero."""
    net = nn.Linear(2, 1, bias=False).double()
    net.weight.data.copy_(torch.tensor([[1.0, 0.0]]))
    objective = Objective(net, lambda o, t: o.sum(), (torch.tensor([[0.0, 1.0]]), torch.zeros(1)))
    assert sharpness(objective, 0.1, adaptive=True).value == 0.0
    assert sharpness(objective, 0.1).value == pytest.approx(0.1)


def test_several_batches_are_one_loss() -> None:
    net, inputs = network("batch norm")
    whole = sharpness(Objective(net, CROSS_ENTROPY, (inputs, labels())), steps=3)
    cuts = [(inputs[:5], labels()[:5]), (inputs[5:], labels()[5:])]
    split = sharpness(Objective(net, CROSS_ENTROPY, cuts), steps=3)
    assert split.value == pytest.approx(whole.value, rel=1e-9)
    assert split.setting.batch_norm == "frozen"


def test_bad_arguments() -> None:
    objective = bowl([1.0], [1.0])
    with pytest.raises(ValueError, match="rho must be finite and above 0, got 0"):
        sharpness(objective, 0.0)
    with pytest.raises(ValueError, match="steps must be a whole number of 1 or more, got 0"):
        sharpness(objective, steps=0)

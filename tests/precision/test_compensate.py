"""Compensate: the factor is the running mean's, and it wins back what shrinkage alone took away."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.parameters import Rule
from trimtab.precision import Compensate, LowPrecision, quantize
from trimtab.precision.logistic import LogisticRegression

ALL = Rule(min_ndim=0)


def projection(g: Tensor, rounded: Tensor) -> float:
    g, rounded = g.double(), rounded.double()
    return float((g.flatten() @ rounded.flatten()) / (g.flatten() @ g.flatten()))


def test_the_factor_is_the_inverse_of_the_running_mean():
    weight = nn.Parameter(torch.zeros(50))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    rounding = LowPrecision("e3m1", rounding="toward_zero", rule=ALL)
    trimtab.attach(optimizer, rounding, compensate := Compensate(rounding, decay=0.8, floor=0.5))
    total = mass = 0.0
    for step in range(6):
        g = torch.randn(50) * 3
        if step == 2:
            g = torch.full((50,), 1e-3)  # dies: q = 0 enters as the floor
        if step == 4:
            g = torch.zeros(50)  # no q: leaves the mean as it is
        rounded = quantize(g, "e3m1", "toward_zero")
        if step != 4:
            total = 0.8 * total + 0.2 * max(projection(g, rounded), 0.5)
            mass = 0.8 * mass + 0.2
        weight.grad = g.clone()
        before = weight.detach().clone()
        optimizer.step()
        assert compensate.factor().item() == pytest.approx(mass / total, rel=1e-9)
        torch.testing.assert_close(before - weight.detach(), rounded * (mass / total))


def test_the_cap_bounds_the_factor():
    weight = nn.Parameter(torch.zeros(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    rounding = LowPrecision("e2m1", rounding="toward_zero", rule=ALL)
    trimtab.attach(optimizer, rounding, compensate := Compensate(rounding, cap=1.5))
    weight.grad = torch.tensor([0.9, 0.4, 0.4, 0.4])
    optimizer.step()
    assert compensate.factor().item() == 1.5


def test_each_tensor_its_own_factor_and_unrounded_ones_none():
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    rounding = LowPrecision("e2m1", rounding="toward_zero")
    compensate = Compensate(rounding, granularity="tensor")
    trimtab.attach(optimizer, rounding, compensate, model=net)
    for scale, parameter in zip((1.0, 1.0, 3.3, 1.0), net.parameters(), strict=True):
        parameter.grad = torch.randn_like(parameter) * scale
    raw = [parameter.grad.clone() for parameter in net.parameters()]
    optimizer.step()
    for number, parameter in enumerate(net.parameters()):
        if parameter.ndim == 1:
            assert torch.equal(parameter.grad, raw[number])
        else:
            rounded = quantize(raw[number], "e2m1", "toward_zero")
            torch.testing.assert_close(parameter.grad, rounded / projection(raw[number], rounded))
    assert set(compensate.signals()) == {"0.weight.factor", "1.weight.factor"}


def test_composes_with_a_schedule_and_does_not_accumulate():
    weight = nn.Parameter(torch.ones(8))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    rounding = LowPrecision("e3m1", rounding="toward_zero", rule=ALL)
    trimtab.attach(optimizer, rounding, Compensate(rounding))
    for _ in range(5):
        weight.grad = torch.randn(8)
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.1 * 0.5**5


def test_between_measured_steps_the_running_factor_is_used():
    weight = nn.Parameter(torch.zeros(8))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    rounding = LowPrecision("e3m1", rounding="toward_zero", rule=ALL)
    trimtab.attach(optimizer, rounding, compensate := Compensate(rounding, every=3))
    factors = []
    for _ in range(6):
        weight.grad = torch.randn(8)
        rounded = quantize(weight.grad, "e3m1", "toward_zero")
        optimizer.step()
        factors.append(compensate.factor().item())
        torch.testing.assert_close(weight.grad, rounded * factors[-1])
    assert factors[0] == factors[1] == factors[2] != factors[3] == factors[4]


def logistic() -> LogisticRegression:
    from sklearn.datasets import load_breast_cancer

    features, labels = load_breast_cancer(return_X_y=True)
    features = torch.tensor(features)
    features = (features - features.mean(0)) / features.std(0)
    return LogisticRegression(features, torch.tensor(labels) * 2 - 1, l2=0.05)


def gaps(problem: LogisticRegression, format: str | None, compensated: bool, steps: int, unit: float = 1.0) -> Tensor:
    """F(w_k) - F* of gradient descent; `unit` scales the loss (and so the gradients) without changing the problem."""
    weight = nn.Parameter(torch.zeros(problem.features.shape[1], dtype=torch.float64))
    optimizer = torch.optim.SGD([weight], lr=0.5 / problem.smoothness / unit)
    if format is not None:
        rounding = LowPrecision(format, rounding="toward_zero", rule=ALL)
        trimtab.attach(optimizer, rounding, *([Compensate(rounding)] if compensated else []))
    found = []
    for _ in range(steps):
        found.append(problem.loss(weight.detach()) - problem.minimum)
        weight.grad = unit * problem.gradient(weight.detach())
        optimizer.step()
    return torch.tensor(found)


def steps_to(gap: Tensor, level: float) -> int:
    return int((gap < level).nonzero()[0])


def test_wins_back_the_slow_down_where_noise_is_small():
    problem = logistic()
    unit = 2.0**10  # far from underflow: rounding to a one-bit mantissa shrinks, and hardly anything dies
    full = gaps(problem, None, False, 400, unit)
    shrunk = gaps(problem, "e5m1", False, 400, unit)
    won_back = gaps(problem, "e5m1", True, 400, unit)
    level = float(full[250])
    lost = steps_to(shrunk, level) / steps_to(full, level)
    left = steps_to(won_back, level) / steps_to(full, level)
    assert lost > 1.15
    assert left < 1 + 0.25 * (lost - 1)


def test_does_not_help_where_entries_die():
    problem = logistic()
    unit = 2.0**-7
    full = gaps(problem, None, False, 400, unit)
    shrunk = gaps(problem, "e4m3", False, 400, unit)
    compensated = gaps(problem, "e4m3", True, 400, unit)
    assert shrunk[-1] > 20 * full[-1]
    assert shrunk[-1] == shrunk[-2]  # it stands still: every entry died
    assert compensated[-1] > 0.5 * shrunk[-1]


def test_resumes_where_it_stood():
    def built() -> tuple[nn.Parameter, torch.optim.SGD, trimtab.Handle]:
        weight = nn.Parameter(torch.zeros(8))
        optimizer = torch.optim.SGD([weight], lr=1.0)
        rounding = LowPrecision("e3m1", rounding="stochastic", rule=ALL)
        return weight, optimizer, trimtab.attach(optimizer, rounding, Compensate(rounding, every=2))

    def steps(weight: nn.Parameter, optimizer: torch.optim.SGD, numbers: range) -> None:
        for number in numbers:
            weight.grad = torch.randn(8, generator=torch.Generator().manual_seed(number))
            optimizer.step()

    weight, optimizer, handle = built()
    steps(weight, optimizer, range(3))
    other, second, resumed = built()
    other.data.copy_(weight.data)
    resumed.load_state_dict(handle.state_dict())
    steps(weight, optimizer, range(3, 6))
    steps(other, second, range(3, 6))
    assert torch.equal(weight, other)


def test_wrong_arguments_and_order():
    rounding = LowPrecision("e4m3")
    for setting in ({"decay": 1.0}, {"decay": -0.1}, {"floor": 0.0}, {"floor": 2}, {"cap": 0.5}, {"every": 0}):
        with pytest.raises(ValueError, match=next(iter(setting))):
            Compensate(rounding, **setting)
    with pytest.raises(ValueError, match="granularity"):
        Compensate(rounding, granularity="layer")
    with pytest.raises(TypeError, match="rounds gradients"):
        Compensate(LowPrecision(weights="e4m3"))
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, Compensate(rounding), rounding)
    net(torch.ones(1, 2)).sum().backward()
    with pytest.raises(RuntimeError, match="attach that one first"):
        optimizer.step()

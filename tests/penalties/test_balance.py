"""The variance amplifier with weight decay: closed forms, simulation without a task, the clock, what a run is told."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.parameters import Rule
from trimtab.penalties import VarianceAmplifier
from trimtab.penalties.balance import time_to_come, variance_after, variance_at_rest

DECAY, MOMENTUM, RATE = 5e-4, 0.9, 0.1
GAUSS = 1 - 2 / math.pi
"""Variance of the magnitudes of a standard normal distribution."""


def cosine(step: int, steps: int) -> float:
    return RATE * (1 + math.cos(math.pi * step / steps)) / 2


class Alone:
    """Weights without a task under SGD, decay and the variance amplifier, float64."""

    def __init__(
        self, weights: Tensor, share: float, decay: float = DECAY, steps: int = 700, momentum: float = MOMENTUM
    ) -> None:
        """`share` is V0 / V*, which sets the strength."""
        self.start, self.steps, self.decay, self.momentum = weights.clone(), steps, decay, momentum
        self.variance = float(weights.abs().var(unbiased=False))
        self.penalty = VarianceAmplifier((self.variance / share) ** 2 * weights.numel() * decay / 2)
        self.net = nn.Linear(weights.shape[1], weights.shape[0], bias=False, dtype=torch.float64)
        self.net.weight.data = weights.clone()
        self.optimizer = torch.optim.SGD(self.net.parameters(), RATE, momentum, weight_decay=decay)
        self.handle = trimtab.attach(self.optimizer, self.penalty, model=self.net)

    def run(self, steps: range | None = None) -> Alone:
        for step in range(self.steps) if steps is None else steps:
            self.optimizer.param_groups[0]["lr"] = cosine(step, self.steps)
            self.net.weight.grad = torch.zeros_like(self.net.weight)
            self.optimizer.step()
        return self

    @property
    def tau(self) -> float:
        return self.decay * math.fsum(cosine(step, self.steps) for step in range(self.steps)) / (1 - self.momentum)

    @property
    def found(self) -> tuple[float, float]:
        """V and the coefficient of variation."""
        sizes = self.net.weight.detach().abs()
        variance = float(sizes.var(unbiased=False))
        return variance, math.sqrt(variance) / float(sizes.mean())


def gaussian(n: int = 4000) -> Tensor:
    return torch.randn(n // 100, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def far_from_zero() -> Tensor:
    return (1 + 0.2 * torch.linspace(-1, 1, 400, dtype=torch.float64).reshape(20, 20)) * torch.tensor(
        [1.0, -1.0]
    ).repeat(10)


@pytest.mark.parametrize(("share", "variation"), [(0.15, 1.41), (0.91, 0.91), (3.6, 0.77)])
def test_five_epochs_at_a_small_decay_can_hardly_show_the_claim(share: float, variation: float) -> None:
    """tau 0.18 from a Gaussian start, whose coefficient of variation is 0.76."""
    alone = Alone(gaussian(), share)
    assert alone.tau == pytest.approx(0.175, abs=0.001)
    assert alone.found[1] == pytest.approx(math.sqrt(GAUSS / (2 / math.pi)), abs=0.01)
    assert alone.run().found[1] == pytest.approx(variation, abs=0.025)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("share", [0.3, 1.0, 3.0])
def test_without_a_task_variance_and_shape_follow_the_closed_forms(share: float, momentum: float) -> None:
    alone = Alone(far_from_zero(), share, decay=5e-4 * (1 - momentum) / 0.1, steps=2000, momentum=momentum)
    v0, (_, start) = alone.variance, alone.found
    total = math.fsum(cosine(step, alone.steps) for step in range(alone.steps))
    foretold = alone.penalty.equilibrium(alone.net, alone.decay, total, momentum)
    alone.run()
    variance, variation = alone.found
    at_rest = v0 / share
    (layer,) = foretold.layers
    assert layer.at_rest == pytest.approx(at_rest, rel=1e-9)
    assert variance == pytest.approx(variance_after(v0, at_rest, alone.tau), rel=0.01)
    (time,) = alone.penalty.clock.times().values()
    assert time == pytest.approx(layer.predicted, rel=0.02)
    assert variation == pytest.approx(start * math.exp(time), rel=0.02)
    assert layer.predicted == pytest.approx(math.log(1 + share**-2 * math.expm1(4 * alone.tau)) / 4, rel=1e-5)
    assert layer.tau == pytest.approx(alone.tau)


@pytest.mark.parametrize("share", [0.2, 1.0, 5.0])
def test_the_variance_comes_to_rest_where_it_is_foretold(share: float) -> None:
    """At V* but for the weights that arrived at zero: a share z of them lowers it to V* sqrt(1 - z / CV^2)."""
    alone = Alone(gaussian(), share, decay=5e-3).run()
    variance, variation = alone.found
    sizes = alone.net.weight.detach().abs()
    at_zero = float((sizes < 1e-3 * sizes.mean()).double().mean())
    assert at_zero > 0.4
    at_rest = variance_at_rest(4000, alone.penalty.strength, 5e-3)
    assert variance == pytest.approx(at_rest * math.sqrt(1 - at_zero / variation**2), rel=0.015)
    assert variance == pytest.approx(at_rest, rel=0.12)


def test_the_time_to_come_is_the_integral_of_the_pull() -> None:
    v0, at_rest, tau = 0.3, 1.1, 1.7
    grid = torch.linspace(0, tau, 20_001, dtype=torch.float64)
    pulls = torch.tensor(
        [(at_rest / variance_after(v0, at_rest, float(t))) ** 2 for t in grid[::10]], dtype=torch.float64
    )
    integral = float(torch.trapezoid(pulls, grid[::10]))
    pull_now = (at_rest / v0) ** 2  # in units of the decay
    assert time_to_come(pull_now, 1.0, tau) == pytest.approx(integral, rel=1e-4)
    assert time_to_come(pull_now, 1.0, 100.0) == pytest.approx(100 + math.log(at_rest / v0) / 2)
    assert time_to_come(pull_now, 1e-12, tau) == pytest.approx(time_to_come(pull_now, 0.0, tau))


def test_half_a_run_and_what_is_foretold_for_the_rest_make_the_whole() -> None:
    alone = Alone(far_from_zero(), 0.5)
    whole = alone.penalty.outlook(math.fsum(cosine(step, 700) / RATE for step in range(700)))
    alone.run(range(300))
    alone.optimizer.param_groups[0]["initial_lr"] = RATE
    assert alone.penalty.outlook(math.fsum(cosine(step, 700) / RATE for step in range(300, 700))) == whole
    assert whole.startswith("predicted T 0.41 (tau 0.18, V0/V* 0.50): too short or decay too small for this lever")


def test_a_long_run_is_not_called_too_short() -> None:
    alone = Alone(gaussian(), 0.9)
    balance = alone.penalty.equilibrium(alone.net, 5e-3, remaining=35, momentum=0.9)
    assert not balance.too_short
    assert "too short" not in str(balance)


@pytest.mark.parametrize("decay", [0, 0.0])
def test_tau_without_decay_is_one_clear_error(decay: float) -> None:
    with pytest.raises(
        ValueError, match=r"weight_decay must be above 0, got 0: without decay there is no balance V\* and no tau"
    ):
        VarianceAmplifier().equilibrium(nn.Linear(3, 3), decay)


@pytest.mark.parametrize(("given", "words"), [
    ({"weight_decay": -1.0}, "weight_decay must be finite and 0 or more"),
    ({"weight_decay": 1e-3, "remaining": -1.0}, "remaining must be finite and 0 or more"),
    ({"weight_decay": 1e-3, "momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
])  # fmt: skip
def test_bad_arguments(given: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VarianceAmplifier().equilibrium(nn.Linear(3, 3), **given)


def test_other_forms_have_no_such_balance() -> None:
    lever = VarianceAmplifier(form="relative")
    with pytest.raises(ValueError, match='is that of form="variance", not that of VarianceAmplifier'):
        lever.equilibrium(nn.Linear(3, 3), 5e-4)
    net = nn.Linear(3, 3)
    with trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=1e-3), lever, model=net):
        assert (lever.outlook(10.0), lever.describe()) == ("", {})


def two_groups(optimizer: Any = torch.optim.SGD) -> tuple[nn.Sequential, VarianceAmplifier, torch.optim.Optimizer]:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(30, 40), nn.Linear(40, 5), nn.utils.parametrizations.weight_norm(nn.Linear(5, 5)))
    groups = [{"params": net[0].parameters(), "lr": 0.05, "weight_decay": 1e-3}, {"params": [*net[1:].parameters()]}]
    made = optimizer(groups, lr=0.1, weight_decay=2e-3)
    lever = VarianceAmplifier(1e-5)
    trimtab.attach(made, lever, model=net)
    return net, lever, made


def test_each_layer_has_the_rate_and_decay_of_its_group_and_computed_weights_have_no_clock() -> None:
    net, lever, optimizer = two_groups()
    before = {name: net.get_parameter(name).detach().double().abs() for name in ("0.weight", "1.weight")}
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert lever.clock.taus == pytest.approx({"0.weight": 0.05 * 1e-3, "1.weight": 0.1 * 2e-3})
    for name, rate in (("0.weight", 0.05), ("1.weight", 0.1)):
        variance, n = float(before[name].var(unbiased=False)), before[name].numel()
        assert lever.clock.times()[name] == pytest.approx(rate * 2e-5 / (n * variance**2), rel=1e-3)
        assert lever.clock.starts()[name] == pytest.approx(variance, rel=1e-3)


def test_the_record_tells_the_whole_and_at_the_end_every_layer() -> None:
    alone = Alone(gaussian(2000), 0.91).run()
    told = alone.penalty.describe()
    assert told.keys() == {"T", "tau", "V0/V*", "V/V*", "CV"}
    assert told["tau"] == pytest.approx(alone.tau)
    assert told["V0/V*"] == pytest.approx(0.91, rel=1e-6)
    assert told["CV"] == pytest.approx(alone.found[1], rel=1e-3)  # smoothed magnitudes here
    assert told["V/V*"] == pytest.approx(0.91 * alone.found[0] / alone.variance, rel=1e-3)
    alone.handle.finish()
    told = alone.penalty.describe()
    assert told["T weight"] == told["T"]
    assert {"V0/V* weight", "V/V* weight", "CV weight"} < told.keys()


def test_with_adam_nothing_is_told() -> None:
    net, lever, optimizer = two_groups(torch.optim.AdamW)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert (lever.clock.times(), lever.outlook(10.0), lever.describe()) == ({}, "", {})


def test_a_resumed_clock_goes_on_to_the_bit() -> None:
    whole, first = Alone(gaussian(400), 0.5).run(range(20)), Alone(gaussian(400), 0.5).run(range(9))
    again = Alone(gaussian(400), 0.5)
    again.net.load_state_dict(first.net.state_dict())
    again.optimizer.load_state_dict(first.optimizer.state_dict())
    again.handle.load_state_dict(first.handle.state_dict())
    again.run(range(9, 20))
    assert again.handle.state_dict() == whole.handle.state_dict()
    assert whole.penalty.clock.times()["weight"] > 0


def test_what_is_not_stepped_has_no_time() -> None:
    net, lever, optimizer = two_groups()
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    optimizer.step()
    net[1].weight.grad = torch.zeros_like(net[1].weight)
    optimizer.step()
    one = lever.clock.times()
    assert lever.clock.taus == pytest.approx({"0.weight": 2 * 0.05 * 1e-3, "1.weight": 0.1 * 2e-3})
    assert one["0.weight"] > 0
    state = lever.clock.state_dict()
    assert state["T"] == one


def test_the_rule_picks_the_layers() -> None:
    net, _, _ = two_groups()
    lever = VarianceAmplifier(rule=Rule(include=("1.*",)))
    assert [layer.name for layer in lever.equilibrium(net, 1e-3).layers] == ["1.weight"]

"""STR: written-down numbers, gradients by autograd, thresholds that rise, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.pruning.along import attached, resumed, same, scaled_steps_with_one_skipped, sgd, steps
from tests.pruning.nets import Small
from tests.pruning.waves import wave
from trimtab.pruning import SoftThreshold


def test_weights_are_the_written_down_ones() -> None:
    net = nn.Linear(6, 1, bias=False, dtype=torch.float64)
    net.weight.data = wave((1, 6), 2)
    attached(net, SoftThreshold(init=-1.0))
    expected = [0.5084348903, 0.0, -0.9595033735, -0.2737814385, 0.009614731912, 0.8558447455]
    assert net.weight[0].tolist() == pytest.approx(expected, abs=1e-9)


def test_steps_are_those_of_autograd_through_the_reparametrisation() -> None:
    net = nn.Linear(9, 4, dtype=torch.float64)
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in net.parameters())
    s = torch.tensor(-2.0, dtype=torch.float64, requires_grad=True)
    soft = SoftThreshold(init=-2.0, decay=0.05, momentum=0.9)
    optimizer, _ = attached(net, soft, torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9))
    other = torch.optim.SGD([{"params": [weight, bias]}, {"params": [s], "weight_decay": 0.05}], lr=0.05, momentum=0.9)
    for step in range(6):
        inputs = torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        shown = weight.sign() * torch.relu(weight.abs() - s.sigmoid())
        torch.testing.assert_close(net.weight, shown)
        optimizer.zero_grad()
        other.zero_grad()
        net(inputs).square().sum().backward()
        nn.functional.linear(inputs, shown, bias).square().sum().backward()
        optimizer.step()
        other.step()
        assert soft.thresholds["weight"] == pytest.approx(float(s.detach().sigmoid()))
    assert 0 < soft.sparsities["weight"] < 1


def test_decay_raises_the_threshold_and_the_sparsity() -> None:
    found = []
    for decay in (0.0, 0.5):
        torch.manual_seed(0)
        net = Small()
        soft = SoftThreshold(init=-5.0, decay=decay)
        optimizer, handle = attached(net, soft, sgd(net))
        steps(net, optimizer, range(15))
        assert not handle.finish()
        found.append(soft.sparsity_now)
        assert soft.sparsity_now == sum(int((net.get_parameter(n) == 0).sum()) for n in soft.masks) / 510
        assert set(soft.describe()) == {"sparsity", "threshold"}
    assert found[1] > found[0] + 0.2


def test_a_skipped_step_moves_nothing_and_a_resumed_run_goes_on() -> None:
    net = Small()
    soft = SoftThreshold(init=-3.0)
    optimizer, _ = attached(net, soft)
    scaled_steps_with_one_skipped(net, optimizer)
    assert soft.steps == 2
    (one, _), (other, _) = resumed(Small, lambda: SoftThreshold(init=-3.0, decay=0.1), 4, 8)
    assert same(one, other)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"init": float("inf")}, "init must be finite"),
        ({"decay": -1.0}, "decay must be"),
        ({"lr": 0.0}, "lr must be"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\)"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SoftThreshold(**settings)

"""Movement pruning: written-down scores, steps by autograd, what it prunes that magnitude does not, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.pruning.along import attached, resumed, same, steps
from tests.pruning.nets import Small
from tests.pruning.waves import wave
from trimtab.pruning import MovementPruning


def lever(**settings: Any) -> MovementPruning:
    return MovementPruning(**{"final": 0.5, "begin": 0.0, "end": 0.5, "every": 1, "total_steps": 8, **settings})


def test_scores_are_the_written_down_ones() -> None:
    net = nn.Linear(5, 1, bias=False, dtype=torch.float64)
    moving = lever(score_lr=1.0, begin=0.9, end=1.0)
    optimizer, _ = attached(net, moving, torch.optim.SGD(net.parameters(), lr=0.0))
    for seed in (1, 2, 3):
        net.weight.data = wave((1, 5), seed + 1)
        net.weight.grad = wave((1, 5), seed)
        optimizer.step()
    expected = [-1.000055786, -0.750648808, -2.522746221, -0.665262619, -0.3496208056]
    assert moving.scores["weight"][0].tolist() == pytest.approx(expected, abs=1e-8)


def test_steps_are_those_of_autograd_with_straight_through_scores() -> None:
    net = nn.Linear(10, 3, bias=False, dtype=torch.float64)
    weight = net.weight.detach().clone().requires_grad_()
    scores = torch.zeros_like(weight)
    moving = lever(score_lr=0.5)
    optimizer, _ = attached(net, moving, torch.optim.SGD(net.parameters(), lr=0.1))
    gone = torch.zeros_like(weight, dtype=torch.bool)
    for step in range(6):
        inputs = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        mask = (~gone).double().requires_grad_()
        grad, of_mask = torch.autograd.grad((inputs @ (weight * mask).T).square().sum(), [weight, mask])
        with torch.no_grad():
            scores -= 0.5 * of_mask
            weight -= 0.1 * grad
        optimizer.zero_grad()
        net(inputs).square().sum().backward()
        optimizer.step()
        count = int(moving.scheduled(step + 1) * 30 + 0.5)
        gone = (
            torch.zeros(30, dtype=torch.bool)
            .index_fill(0, scores.flatten().argsort(stable=True)[:count], True)
            .view(3, 10)
        )
        torch.testing.assert_close(moving.scores["weight"], scores)
        torch.testing.assert_close(net.weight, weight.detach().masked_fill(gone, 0))


def test_a_large_weight_that_shrinks_goes_before_a_small_one_that_grows() -> None:
    net = nn.Linear(2, 1, bias=False)
    net.weight.data = torch.tensor([[3.0, 0.1]])
    moving = lever(begin=0.5, end=0.6)
    optimizer, _ = attached(net, moving, torch.optim.SGD(net.parameters(), lr=0.01))
    for _ in range(5):
        net.weight.grad = torch.tensor([[1.0, -1.0]])
        optimizer.step()
    assert moving.masks["weight"].tolist() == [[False, True]]


def test_a_run_that_stopped_goes_on_and_ends_at_the_sparsity() -> None:
    (one, handle), (other, _) = resumed(Small, lambda: lever(scope="global", begin=0.2), 3, 8)
    assert same(one, other)
    assert not handle.finish()
    assert sum(int((one.get_parameter(n) == 0).sum()) for n in ("conv.weight", "up.weight", "head.weight")) == 255


def test_computed_weights_closures_and_bad_settings_are_named() -> None:
    net = Small()
    nn.utils.parametrizations.weight_norm(net.conv)
    moving = lever()
    optimizer, _ = attached(net, moving)
    steps(net, optimizer, range(2))
    assert "no values behind a mask" in {entry.name: why for entry, why in moving.left_out}["conv.weight"]
    with pytest.raises(ValueError, match="LBFGS"):
        attached(Small(), lever(), torch.optim.LBFGS(net.parameters()))
    with pytest.raises(ValueError, match="score_lr must be"):
        lever(score_lr=0.0)
    with pytest.raises(ValueError, match="begin must be below end"):
        lever(begin=0.6)

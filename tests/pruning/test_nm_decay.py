"""Towards N:M: written-down numbers, straight-through steps by autograd, phases, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.pruning.along import attached, batch, sgd, steps
from tests.pruning.nets import Small
from tests.pruning.waves import wave
from trimtab.pruning import NMDecay, one_shot
from trimtab.pruning.nm_decay import _outside


def lever(**settings: Any) -> NMDecay:
    return NMDecay(**{"begin": 0.0, "end": 0.5, "total_steps": 20, "indivisible": "leave_out", **settings})


def test_masks_and_fading_weights_are_the_written_down_ones() -> None:
    weight = wave((2, 8), 2)
    assert (~_outside(weight, 2, 4, 1)).int().tolist() == [[1, 0, 1, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0, 1, 0]]
    assert (~_outside(weight, 1, 8, 1)).int().tolist() == [[0, 0, 1, 0, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0, 0, 0]]
    net = nn.Linear(8, 2, bias=False, dtype=torch.float64)
    net.weight.data = weight.clone()
    fading = lever(rate=0.25, end=1.0)
    optimizer, _ = attached(net, fading, torch.optim.SGD(net.parameters(), lr=0.0))
    for _ in range(3):
        net.weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert fading.beta == 0.25
    expected = [
        [0.7773763117, 0.0172448379, -1.228444795, -0.135680715, 0.06963903832, 1.124786167, -0.05998770683, -0.7365508864],
        [-0.06663700589, 0.933855618, 1.098979243, -0.1152631796, -0.8126209775, -0.1464529784, 1.001223226, 0.1080127632],
    ]  # fmt: skip
    torch.testing.assert_close(net.weight.tolist(), expected, rtol=0, atol=1e-8)
    assert fading.sparsity_now == 0.0, "what fades is not zero"


def test_schedules_are_the_written_down_ones() -> None:
    for decay, expected in (
        ("linear", [1.0, 0.5, 0.0, 0.0]),
        ("exponential", [1.0, 0.6065306597, 0.3678794412, 0.2231301601]),
    ):
        fading = lever(decay=decay, rate=0.01, end=1.0, total_steps=1000)
        assert [fading.beta_at(t) for t in (0, 50, 100, 150)] == pytest.approx(expected)
    assert lever(n=2, m=16, method="structure").stages == ((15, 16), (8, 16), (4, 16), (2, 16))
    assert lever(n=1, m=4, method="structure", variant="fine").stages == ((8, 32), (4, 16), (2, 8), (1, 4))
    assert lever(n=1, m=8, method="structure", variant="densify").stages == ((1, 128), (1, 32), (1, 16), (1, 8))
    assert lever(n=2, m=6, method="structure", variant="densify").stages == ((2, 96), (2, 24), (2, 12), (2, 6))
    own = lever(decay="exponential", begin=0.2, end=0.7, total_steps=100)
    assert own.beta_at(19) == own.beta_at(20) == 1.0
    assert own.beta_at(69) == pytest.approx(0.01 ** (49 / 50))
    assert own.beta_at(70) == 0.0


@pytest.mark.parametrize(
    ("variant", "m", "inputs", "expected"),
    [("sparsify", 16, 16, [15, 8, 4, 2]), ("fine", 4, 32, [16, 16, 16, 16]), ("densify", 4, 64, [2, 8, 16, 32])],
)
def test_stages_come_in_equal_frames_and_each_holds(variant: Any, m: int, inputs: int, expected: list[int]) -> None:
    net = nn.Linear(inputs, 3, bias=False)
    tightening = lever(n=2, m=m, method="structure", variant=variant, begin=0.2, end=0.6, total_steps=20)
    optimizer, _ = attached(net, tightening)
    kept = []
    for _ in range(14):
        optimizer.zero_grad()
        net(torch.ones(1, inputs)).square().sum().backward()
        optimizer.step()
        kept.append(int((net.weight != 0).sum()) // 3)
    first, second, third, last = expected
    assert kept == [inputs] * 3 + [first] * 2 + [second] * 2 + [third] * 2 + [last] * 5


@pytest.mark.parametrize("method", ["mask", "sr_ste"])
def test_steps_are_those_of_autograd_through_a_straight_through_mask(method: str) -> None:
    net, twin = nn.Linear(8, 3, dtype=torch.float64), nn.Linear(8, 3, dtype=torch.float64)
    twin.load_state_dict(net.state_dict())
    towards = lever(method=method, strength=0.3, total_steps=12)
    optimizer, other = attached(net, towards)[0], sgd(twin)

    def shown(weight: Tensor, beta: float) -> Tensor:
        rows = weight.detach().abs().view(-1, 4)
        kept = torch.zeros_like(rows).scatter_(1, rows.topk(2, dim=1).indices, 1).view_as(weight)
        value = weight * (kept + (1 - kept) * beta)
        return weight + (value - weight).detach()

    for step in range(9):
        inputs = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        for now, loss in (
            (optimizer, net(inputs)),
            (other, nn.functional.linear(inputs, shown(twin.weight, towards.beta_at(step)), twin.bias)),
        ):
            now.zero_grad()
            loss.square().sum().backward()
        if method == "sr_ste":
            away = shown(twin.weight, 0.0).detach() == 0
            twin.weight.grad += 0.3 * away * twin.weight.detach()
        optimizer.step()
        other.step()
        torch.testing.assert_close(net.weight, shown(twin.weight, towards.beta_at(step + 1)).detach())
    assert int((net.weight == 0).sum()) == 12


def test_groups_run_along_the_inputs_of_convolutions_and_the_end_is_a_network_of_the_pattern() -> None:
    net = Small()
    towards = lever()
    optimizer, handle = attached(net, towards)
    steps(net, optimizer, range(3))
    assert 0 < towards.beta < 1
    assert handle.finish(), "it ended before its time"
    assert not handle.finish()
    assert bool(((net.conv.weight != 0).sum(1) == 2).all())  # 4 inputs
    assert bool(((net.up.weight.view(2, 4, 6, 2, 2) != 0).sum(1) == 2).all())  # inputs first
    before = net.conv.weight.clone()
    one_shot(net, pattern="2:4", indivisible="leave_out")
    assert torch.equal(net.conv.weight, before)
    assert {entry.name: why for entry, why in towards.left_out}[
        "head.weight"
    ] == "input axis of 6 is not a multiple of 4"


def test_full_training_needs_no_recalibration_at_its_end() -> None:
    net = Small()
    optimizer, handle = attached(net, lever(total_steps=4))
    steps(net, optimizer, range(4))
    assert not handle.finish()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 4}, "n must be below m=4, got 4"),
        ({"n": 0}, "n must be"),
        ({"method": "hard"}, "method must be one of"),
        ({"decay": "cosine"}, "decay must be one of"),
        ({"rate": -1.0}, "rate must be"),
        ({"begin": 0.7}, "begin must be below end"),
        ({"n": 1, "m": 3, "method": "structure"}, "power of 2; got 1:3"),
        ({"strength": -0.1}, "strength must be"),
        ({"indivisible": "pad"}, "indivisible must be one of"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lever(**settings)


def test_what_the_pattern_does_not_divide_is_refused_by_name() -> None:
    net = Small()
    with pytest.raises(ValueError, match=r"'2:4' does not divide 1 weight\(s\): head\.weight"):
        attached(net, lever(indivisible="refuse"))
    with pytest.raises(ValueError, match="finds no weight whose inputs are a multiple of 20"):
        attached(net, lever(n=3, m=20))
    with pytest.raises(ValueError, match="LBFGS"):
        attached(net, lever(), torch.optim.LBFGS(net.parameters()))
    table = nn.Embedding(4, 4, sparse=True)
    optimizer, _ = attached(table, lever())
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(TypeError, match="sparse"):
        optimizer.step()
    assert net(batch(0)).isfinite().all()

"""Private gradients: the sheet's numbers, loops, exact without clip and noise, resuming, opacus, bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.waves import wave
from trimtab.workers import GradientDifference, GroupClip, lora_groups

DIFF2 = [
    [0.3095727214, 0.8852057731, 0.3472397867], [0.4276253897, 0.7653494951, 0.03012309863],
    [0.3793731649, 0.4342426561, -0.2080486878], [0.2650208305, -0.5344529922, -0.8025733353],
]  # fmt: skip


def test_differences_equal_the_sheets_numbers() -> None:
    estimate = GradientDifference(C1=1, C2=0.5, sigma1=0, sigma2=0, restart=3)
    for seed, expected in enumerate(DIFF2):
        assert estimate.step(wave(3, seed=seed), wave(3, seed=seed + 9)).tolist() == pytest.approx(expected, rel=1e-8)
    assert [one.sensitivity for one in estimate.releases][::3] == [1, 1]


def test_without_clip_and_noise_the_estimate_is_the_gradient() -> None:
    estimate = GradientDifference(C1=1e9, C2=1e9, sigma1=0, sigma2=0, restart=100)
    for seed in range(8):
        gradient = wave(5, seed=seed)
        torch.testing.assert_close(estimate.step(gradient, wave(5, seed=seed + 20)), gradient)


def test_noise_is_that_of_the_step() -> None:
    estimate = GradientDifference(C1=2.0, C2=3.0, sigma1=0.5, sigma2=0.25, restart=2)
    size, zero = 40_000, torch.zeros(40_000)
    first = estimate.step(zero, zero)
    assert float(first.std()) == pytest.approx(0.5 * 2.0, rel=0.02)
    point = torch.full((size,), 0.01)
    second = estimate.step(zero, point)
    assert float((second - first).std()) == pytest.approx(0.25 * 3.0 * 0.01 * math.sqrt(size), rel=0.02)
    assert estimate.releases[1].sensitivity == pytest.approx(3.0 * 0.01 * math.sqrt(size), rel=1e-3)
    assert torch.equal(estimate.step(zero, point), estimate.step(zero, point))  # anew, and then no step: no noise


def test_differences_go_on_from_a_saved_state() -> None:
    def make() -> GradientDifference:
        return GradientDifference(C1=1, C2=0.5, sigma1=1, sigma2=1, restart=3, seed=4)

    def run(estimate: GradientDifference, seeds: range) -> list[Tensor]:
        return [estimate.step(wave(4, seed=seed), wave(4, seed=seed + 9)) for seed in seeds]

    whole, begun, resumed = make(), make(), make()
    expected = run(whole, range(7))
    run(begun, range(4))
    resumed.load_state_dict(begun.state_dict())
    for found, wanted in zip(run(resumed, range(4, 7)), expected[4:], strict=True):
        assert torch.equal(found, wanted)
    assert resumed.releases == whole.releases


def test_groups_equal_the_sheets_numbers() -> None:
    """Gradients are given: a network of two parameters whose losses are their products with the inputs."""
    each = {"a": wave(4, 3, seed=1, scale=5), "b": wave(4, 2, seed=2, scale=0.1)}

    class Products(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.zeros(3, dtype=torch.float64))
            self.b = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, inputs: Tensor) -> Tensor:
            return inputs[:, :3] @ self.a + inputs[:, 3:] @ self.b

    net = Products()
    private = GroupClip(net, {"a": ["a"], "b": ["b"]}, clips=1.0, sigma=0.0)
    private.backward(lambda outputs, targets: outputs.sum(), torch.cat([each["a"], each["b"]], 1), torch.zeros(4))
    assert net.a.grad is not None
    assert net.b.grad is not None
    noise = 0.5 / 4  # of sigma 0.5, bound 1 and z = 1
    assert (net.a.grad + noise).tolist() == pytest.approx([0.2909645604, 0.5624351914, 0.05919547962], rel=1e-8)
    assert (net.b.grad + noise).tolist() == pytest.approx([0.1146884211, 0.1228622943], rel=1e-8)


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()


GROUPS = {"body": ["0.weight", "0.bias", "1.weight", "1.bias"], "head": ["4.weight", "4.bias"]}


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(count, 1, 6, 6, dtype=torch.float64, generator=generator),
        torch.randint(3, (count,), generator=generator),
    )


def test_a_network_gets_what_a_loop_over_examples_makes() -> None:
    net, (inputs, targets) = network(), data()
    GroupClip(net, GROUPS, {"body": 0.3, "head": 0.7}, sigma=0.0).backward(F.cross_entropy, inputs, targets)
    expected = {name: torch.zeros_like(one) for name, one in net.named_parameters()}
    for one, kind in zip(inputs, targets, strict=True):
        loss = F.cross_entropy(net(one[None]), kind[None])
        gradient = dict(zip(expected, torch.autograd.grad(loss, list(net.parameters())), strict=True))
        for names, clip in zip(GROUPS.values(), (0.3, 0.7), strict=True):
            norm = math.sqrt(sum(float(gradient[name].square().sum()) for name in names))
            for name in names:
                expected[name] += gradient[name] * min(1, clip / norm) / len(inputs)
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_micro_batches_add_up_to_one_batch_and_noise_comes_once() -> None:
    whole, parts, (inputs, targets) = network(), network(), data(20)
    GroupClip(whole, GROUPS, 0.5, sigma=1.0, seed=3).backward(F.cross_entropy, inputs, targets)
    private = GroupClip(parts, GROUPS, 0.5, sigma=1.0, seed=3)
    private.backward(F.cross_entropy, inputs[:8], targets[:8], more=True)
    private.backward(F.cross_entropy, inputs[8:], targets[8:])
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_step_that_fails_leaves_nothing_for_the_next() -> None:
    net, inputs, targets, calls = nn.Linear(2, 1), wave(40, 2).float(), wave(40, 1, seed=1).float(), []

    def loss(outputs: Tensor, wanted: Tensor) -> Tensor:
        calls.append(len(calls))
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return F.mse_loss(outputs, wanted)

    private = GroupClip(net, sigma=0)
    with pytest.raises(RuntimeError, match="out of memory"):
        private.backward(loss, inputs, targets)
    private.backward(loss, inputs, targets)
    found = net.weight.grad
    GroupClip(net, sigma=0).backward(loss, inputs, targets)
    assert found is not None
    torch.testing.assert_close(net.weight.grad, found, rtol=0, atol=0)


def test_noise_has_the_deviation_of_its_group_and_goes_on_from_a_saved_state() -> None:
    net = nn.Linear(300, 100)
    private = GroupClip(net, {"w": ["weight"], "b": ["bias"]}, {"w": 2.0, "b": 0.1}, sigma=1.5)
    state = private.state_dict()
    private.backward(lambda out, _: out.sum() * 0, torch.zeros(5, 300), torch.zeros(5))
    assert net.weight.grad is not None
    assert net.bias.grad is not None
    first = net.weight.grad.clone()
    assert float(first.std()) == pytest.approx(1.5 * 2.0 / 5, rel=0.02)
    assert float(net.bias.grad.std()) == pytest.approx(1.5 * 0.1 / 5, rel=0.3)
    private.load_state_dict(state)
    private.backward(lambda out, _: out.sum() * 0, torch.zeros(5, 300), torch.zeros(5))
    assert torch.equal(net.weight.grad, first)


def test_frozen_parameters_are_left_alone_and_adapters_make_groups() -> None:
    class Adapter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = nn.Linear(4, 4).requires_grad_(False)
            self.lora_A, self.lora_B = nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.base(inputs) + self.lora_B(self.lora_A(inputs))

    net = nn.Sequential(Adapter(), nn.Linear(4, 2))
    groups = lora_groups(net)
    assert groups == {"0": ["0.lora_A.weight", "0.lora_B.weight"], "rest": ["1.weight", "1.bias"]}
    GroupClip(net, groups).backward(F.mse_loss, torch.ones(3, 4), torch.ones(3, 2))
    assert [name for name, one in net.named_parameters() if one.grad is None] == ["0.base.weight", "0.base.bias"]


def test_epsilon_is_opacus() -> None:
    accountants = pytest.importorskip("opacus.accountants")
    net = network()
    private = GroupClip(net, GROUPS, 0.5, sigma=1.3)
    assert private.sensitivity == pytest.approx(math.sqrt(0.5))
    accountant = accountants.RDPAccountant()
    for _ in range(50):
        accountant.step(noise_multiplier=1.3 / math.sqrt(2), sample_rate=0.05)
    assert private.epsilon(50, 0.05, 1e-5) == pytest.approx(accountant.get_epsilon(1e-5))


BAD: list[tuple[Any, str]] = [
    (lambda: GroupClip(nn.Sequential(nn.BatchNorm1d(2))), "0 is a BatchNorm, which mixes examples"),
    (lambda: GroupClip(nn.Linear(1, 1), {"w": ["weight"]}), "bias must be in one group, it is in 0"),
    (lambda: GroupClip(nn.Linear(1, 1), {"w": ["weight", "bias"], "b": ["bias"]}), "bias must be in one group, it is in 2"),
    (lambda: GroupClip(nn.Linear(1, 1), {"w": ["weights"]}), "weights is no trainable parameter of the model"),
    (lambda: GroupClip(nn.Linear(1, 1), {"w": ["weight", "bias"], "b": []}), "the group 'b' holds no trainable parameter"),
    (lambda: GroupClip(nn.Linear(1, 1), clips={"w": 1.0}), r"clips must be of the groups \['all'\], got \['w'\]"),
    (lambda: GroupClip(nn.Linear(1, 1), clips=0), "clip of all must be finite and above 0, got 0"),
    (lambda: GroupClip(nn.Linear(1, 1)).backward(F.mse_loss, torch.ones(0, 1), torch.ones(0, 1)), "one at least, got 0 and 0"),
    (lambda: GroupClip(nn.Linear(1, 1), sigma=0).epsilon(1, 0.1, 1e-5), "without noise"),
    (lambda: GradientDifference(0, 1, 0, 0, 1), "C1 must be finite and above 0, got 0"),
    (lambda: GradientDifference(1, 1, 0, 0, 1).step(torch.ones(2), torch.ones(3)), "gradient and point must have one shape"),
    (lambda: GradientDifference(1, 1, 0, 0, 1).step(torch.full((2,), math.nan), torch.ones(2)), "the gradient is not finite"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), BAD)
def test_bad_input_is_one_error(act: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act()

"""NormGrowthLimiter, ZClip and AdaGC against numbers worked out apart, a peer, and what they are for: a spike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from pytorch_optimizer import AdaGC as PeerAdaGC
from torch import Tensor, nn

import trimtab
from tests.gradients.samples import sample
from trimtab.gradients import AdaGC, GradientTransform, NormGrowthLimiter, ZClip
from trimtab.parameters import Entry, Rule

ALL: list[Callable[[], GradientTransform]] = [
    NormGrowthLimiter,
    lambda: NormGrowthLimiter(per="global"),
    lambda: ZClip(warmup=2, max_norm=None),
    lambda: AdaGC(start=2, absolute=1e9),
]


def pair(norms: Sequence[float | None]) -> list[Entry]:
    """Two tensors whose gradients have these norms; None for no gradient."""
    entries = [Entry(name, nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)), 0) for name in ("a", "b")]
    for entry, norm in zip(entries, norms, strict=True):
        if norm is not None:
            entry.parameter.grad = torch.full((2, 2), norm / 2, dtype=torch.float64)
    return entries


def left(lever: GradientTransform, norms: Sequence[float | None]) -> list[float]:
    """Norms after the lever has acted."""
    entries = pair(norms)
    lever.before_step(entries)
    return [float(entry.parameter.grad.norm()) for entry in entries if entry.parameter.grad is not None]


def test_growth_factors_of_the_formula() -> None:
    lever = NormGrowthLimiter()
    expected = [1.0, 1.0, 0.203010002, 1.0, 0.2244444557]
    for norm, factor in zip([1.0, 1.005, 5.0, 0.2, 0.9], expected, strict=True):
        assert left(lever, [norm, None])[0] / norm == pytest.approx(factor, rel=1e-9)


def test_growth_is_measured_from_what_was_left_and_not_from_what_came() -> None:
    lever = NormGrowthLimiter(max_growth=2.0, eps=0.0)
    assert [left(lever, [norm, None])[0] for norm in (1.0, 100.0, 100.0, 100.0)] == pytest.approx([1, 2, 4, 8])


def test_from_a_millionth_to_one_takes_1389_steps_and_one_with_a_floor() -> None:
    plain, floored = NormGrowthLimiter(eps=0.0), NormGrowthLimiter(floor=1.0)
    for lever in (plain, floored):
        left(lever, [1e-6, None])
    assert left(floored, [1.0, None]) == pytest.approx([1.0])
    steps = 1
    while left(plain, [1.0, None])[0] < 1:
        steps += 1
    assert steps == math.ceil(math.log(1e6) / math.log(1.01)) == 1389


def test_one_spike_cuts_its_own_tensor_or_all() -> None:
    each, together = NormGrowthLimiter(max_growth=2, eps=0), NormGrowthLimiter(max_growth=2, eps=0, per="global")
    for lever, expected in ((each, [6.0, 4.0]), (together, [10 * 90 / math.hypot(90, 4), 10 * 4 / math.hypot(90, 4)])):
        left(lever, [3.0, 4.0])
        assert left(lever, [90.0, 4.0]) == pytest.approx(expected)


def test_zclip_by_hand() -> None:
    """Norms 0.9 and 1.1 have mean 1 and deviation 0.1; a norm of 2 has z = 10."""
    for bound, expected in (("reciprocal", 1 + 2.5**2 / 10 * 0.1), ("mean", 1.0), ("fixed", 1.25)):
        lever = ZClip(warmup=2, max_norm=None, bound=bound, eps=0.0)
        for norm in (0.9, 1.1):
            assert left(lever, [norm, None]) == pytest.approx([norm])
        assert left(lever, [2.0, None]) == pytest.approx([expected], rel=2e-6)
        mean = 1 + 0.03 * (expected - 1)
        state = lever.state_dict()
        assert state["mean"] == pytest.approx(mean)
        assert state["variance"] == pytest.approx(0.97 * 0.01 + 0.03 * (expected - mean) ** 2)
        assert state["steps"] == 3


def test_zclip_learns_from_what_it_left_of_a_spike_or_not_at_all() -> None:
    learns, forgets = ZClip(warmup=2, max_norm=None), ZClip(warmup=2, max_norm=None, learn_from_spikes=False)
    for lever in (learns, forgets):
        for norm in (0.9, 1.1, 100.0):
            left(lever, [norm, None])
    assert 1 < learns.state_dict()["mean"] < 1.01
    assert forgets.state_dict()["mean"] == pytest.approx(1.0)


def test_zclip_keeps_below_the_greatest_norm_from_the_first_step_and_learns_from_the_raw_one() -> None:
    lever = ZClip(warmup=2, max_norm=0.5)
    assert [left(lever, [norm, None])[0] for norm in (0.9, 1.1, 1.0)] == pytest.approx([0.5] * 3, rel=3e-6)
    assert lever.state_dict()["mean"] == pytest.approx(1.0)


def test_ada_gc_equals_its_peer() -> None:
    entries = [entry for entry in sample(dtype=torch.float64) if entry.parameter.numel()]
    peers = [nn.Parameter(entry.parameter.detach().clone().contiguous()) for entry in entries]
    peer = PeerAdaGC(peers, betas=(0.0, 0.0), weight_decay=0.0, warmup_steps=4, lambda_abs=3.0, beta=0.9)
    lever = AdaGC(start=4, absolute=3.0, decay=0.9)
    generator = torch.Generator().manual_seed(1)
    for step in range(9):
        for entry, other in zip(entries, peers, strict=True):
            scale = (1 + step % 3) * float(torch.rand((), generator=generator))
            gradient = scale * torch.randn(entry.parameter.shape, generator=generator, dtype=torch.float64)
            entry.parameter.grad, other.grad = gradient.clone(), gradient.clone()
        lever.before_step(entries)
        peer.step()
        means = lever.state_dict()["mean"]
        # without a first decay the peer's first moment is the clipped gradient; its joint norm is summed in float32
        for entry, other in zip(entries, peers, strict=True):
            state = peer.state[other]
            torch.testing.assert_close(entry.parameter.grad, state["exp_avg"], rtol=1e-6, atol=1e-9)
            assert means[entry.name] == pytest.approx(float(state["gamma"]), rel=1e-6)


def test_ada_gc_begins_with_the_least_norm_and_then_runs() -> None:
    lever = AdaGC(start=3, absolute=1e9, decay=0.5, relative=2.0)
    for norm in (3.0, 5.0):
        assert left(lever, [norm, None]) == pytest.approx([norm])
    assert lever.state_dict()["mean"] == {"a": pytest.approx(3.0)}
    assert left(lever, [100.0, None]) == pytest.approx([6.0])
    assert lever.state_dict()["mean"] == {"a": pytest.approx(4.5)}


def test_ada_gc_counts_the_steps_of_each_tensor() -> None:
    lever = AdaGC(start=2, absolute=1e9, relative=2.0)
    left(lever, [1.0, None])
    assert left(lever, [100.0, 7.0]) == pytest.approx([2.0, 7.0])


@pytest.mark.parametrize("build", ALL)
def test_gradients_that_are_not_finite_are_not_remembered(build: Callable[[], GradientTransform]) -> None:
    whole, broken = build(), build()
    for norm in (1.0, 1.1, 1.05):
        assert left(whole, [norm, 1.0]) == pytest.approx(left(broken, [norm, 1.0]))
    seen = left(broken, [math.inf, 1.0])
    assert math.isinf(seen[0]) or math.isnan(seen[0])
    assert left(broken, [50.0, 1.0]) == pytest.approx(left(whole, [50.0, 1.0]), rel=1e-2)


@pytest.mark.parametrize("build", ALL)
def test_memory_goes_by_name_and_survives_a_tensor_without_gradient(build: Callable[[], GradientTransform]) -> None:
    lever = build()
    for norms in ([1.0, 1.0], [1.02, 1.02], [1.0, None], [1.0, 1.0]):
        left(lever, norms)
    other = build()
    other.load_state_dict(lever.state_dict())
    assert other.state_dict() == lever.state_dict()
    assert left(other, [30.0, 30.0]) == left(lever, [30.0, 30.0])
    assert max(left(lever, [30.0, 30.0])) < 3


@pytest.mark.parametrize("build", ALL)
def test_gradients_of_zero_stay_zero(build: Callable[[], GradientTransform]) -> None:
    lever = build()
    for _ in range(4):
        assert left(lever, [0.0, 0.0]) == [0.0, 0.0]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: NormGrowthLimiter(0.9), r"max_growth .*1 or more, got 0\.9"),
        (lambda: NormGrowthLimiter(per="row"), "per must be one of 'tensor', 'global', got 'row'"),
        (lambda: NormGrowthLimiter(floor=-1), "floor must"),
        (lambda: ZClip(decay=1.0), r"decay must lie in \[0, 1\), got 1"),
        (lambda: ZClip(warmup=0), "warmup must be a whole number of 1 or more, got 0"),
        (lambda: ZClip(bound="median"), "bound must be one of 'reciprocal', 'mean', 'fixed', got 'median'"),
        (lambda: AdaGC(relative=0.0), "relative must be finite and above 0, got 0"),
        (lambda: AdaGC(start=0), "start must be a whole number of 1 or more, got 0"),
    ],
)
def test_bad_values_are_refused(build: Callable[[], GradientTransform], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build()


def test_saved_state_of_other_settings_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        AdaGC(start=3).load_state_dict(AdaGC(start=4).state_dict())


def test_two_optimizers_share_what_remembers_each_tensor_and_not_what_remembers_all() -> None:
    nets = [nn.Linear(2, 2), nn.Linear(2, 2)]
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    for lever in (ZClip(), NormGrowthLimiter(per="global")):
        with pytest.raises(ValueError, match="2 optimizers at once"):
            trimtab.attach(optimizers, lever)
    limiter = NormGrowthLimiter(max_growth=2.0, eps=0.0)
    trimtab.attach(optimizers, limiter, model=nn.ModuleList(nets))
    for size in (1.0, 10.0):
        for net, optimizer in zip(nets, optimizers, strict=True):
            net.weight.grad = torch.full((2, 2), size)
            optimizer.step()
            assert net.weight.grad[0, 0] == pytest.approx(min(size, 2.0))


def spiked(*levers: GradientTransform) -> float:
    """Loss of a small regression ten steps after one batch whose loss is a thousand times too large."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    inputs = torch.randn(256, 8)
    targets = inputs[:, :1] * inputs[:, 1:2]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    trimtab.attach(optimizer, *levers)
    loss = torch.zeros(())
    for step in range(61):
        rows = torch.randint(0, 256, (32,))
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(inputs[rows]), targets[rows])
        (loss * (1000 if step == 50 else 1)).backward()
        optimizer.step()
    found: Tensor = nn.functional.mse_loss(net(inputs), targets)
    return float(found.detach())


def test_a_spike_that_ruins_plain_training_is_survived() -> None:
    plain = spiked()
    assert not plain < 100
    for lever in (NormGrowthLimiter(rule=Rule(min_ndim=0)), ZClip(warmup=10), AdaGC(start=10)):
        assert spiked(lever) < 1.5, lever

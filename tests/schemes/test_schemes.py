"""U-shaped timesteps, NoProp, GBNN; beside them pseudo-Huber and AttentionResidual."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn.base import clone
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import Tensor, nn

from tests.losses.test_cross_entropies import wave
from trimtab.losses import pseudo_huber
from trimtab.models import AttentionResidual
from trimtab.schemes import GBNNRegressor, NoProp, UShapedTimestep
from trimtab.schemes.gbnn import newton_step
from trimtab.schemes.noprop import cosine_signal, local_weights, posterior


def test_the_sheets_density_and_inverse() -> None:
    sampler = UShapedTimestep(4.0, 0.0, 1.0)
    places = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    assert sampler.density(places).tolist() == pytest.approx([1.421319919, 0.5514411295, 1.421319919], rel=1e-9)
    assert sampler.rising(places).tolist() == pytest.approx([0.4624998223, 0.8312506868, 0.9741681218], rel=1e-9)


@pytest.mark.parametrize("sampler", [UShapedTimestep(), UShapedTimestep(2.0, 0.3, 0.7)], ids=repr)
def test_timesteps_are_drawn_from_the_density(sampler: UShapedTimestep) -> None:
    def distribution(t: Any) -> Any:
        ends = np.clip(np.atleast_1d(t), sampler.low, sampler.high)
        return np.array([integrate.quad(lambda s: float(sampler.density(torch.tensor(s).double())), sampler.low, end)[0]
                         for end in ends])  # fmt: skip

    assert distribution(1.0)[0] == pytest.approx(1, abs=1e-6)
    drawn = sampler.sample(400, generator=torch.Generator().manual_seed(0))
    assert torch.equal(drawn, sampler.sample(400, generator=torch.Generator().manual_seed(0)))
    assert stats.kstest(drawn.double().numpy(), distribution).pvalue > 0.01
    assert sampler.density(torch.tensor([-0.1, 1.1])).tolist() == [0.0, 0.0]


def test_bad_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="a must be finite and above 0, got 0"):
        UShapedTimestep(0)
    with pytest.raises(ValueError, match=r"high must lie in \(0.5, 1\], got 0.5"):
        UShapedTimestep(low=0.5, high=0.5)


def test_pseudo_huber_equals_the_sheet_and_its_slopes() -> None:
    found = pseudo_huber(wave(2, 3, seed=1), wave(2, 3, seed=2), reduction="none")
    assert found.tolist() == pytest.approx([0.388145184, 0.3189208019], rel=1e-9)
    assert pseudo_huber(wave(2, 3, seed=1), wave(2, 3, seed=2)).item() == pytest.approx(sum(found.tolist()) / 2)
    start = torch.zeros(1, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: pseudo_huber(x, start, c=0.5), ((wave(1, 4)).requires_grad_(),))
    zero = start.clone().requires_grad_()
    pseudo_huber(zero, start).backward()
    assert zero.grad is not None
    assert not zero.grad.any()  # finite where both agree
    tiny = torch.full((1, 4), 1e-12, dtype=torch.float64)
    assert pseudo_huber(tiny, 0 * tiny, c=1.0).item() == pytest.approx(4e-24 / (2 * 4) / 4, rel=1e-9)  # no cancellation
    far = wave(1, 4).requires_grad_()
    (slope,) = torch.autograd.grad(pseudo_huber(1e6 * far, start), far)
    assert slope.norm().item() == pytest.approx(1e6 / 4, rel=1e-6)  # bounded by 1 / d
    with pytest.raises(ValueError, match=r"one shape \(examples, \.\.\.\), got \(2, 3\) and \(2, 2\)"):
        pseudo_huber(torch.zeros(2, 3), torch.zeros(2, 2))


def test_attention_residual_equals_the_sheet_and_starts_as_the_mean() -> None:
    sources = [one[None] for one in wave(3, 4, seed=1)]
    mix = AttentionResidual(4).double()
    torch.testing.assert_close(mix(sources)[0], wave(3, 4, seed=1).mean(0))
    mix.query.data = wave(4, seed=2)
    assert mix(sources)[0].tolist() == pytest.approx(
        [0.8946917883, 0.9977263679, -0.5250250997, -1.153712713], rel=1e-8
    )
    assert mix.weights(sources)[:, 0].tolist() == pytest.approx([0.9812641928, 0.01337417187, 0.00536163536], rel=1e-8)
    longer = [10 * one for one in sources]
    torch.testing.assert_close(mix.weights(longer), mix.weights(sources))  # chosen by direction, not by size
    with pytest.raises(ValueError, match=r"sources must be of one shape \(\.\.\., 4\), got \[\(1, 3\), \(1, 4\)\]"):
        mix([torch.zeros(1, 4), torch.zeros(1, 3)])
    with pytest.raises(ValueError, match=r"got \[\]"):
        mix([])


class Block(nn.Module):
    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(classes + features, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        found: Tensor = self.body(torch.cat([z, x], 1))
        return found


def test_noprops_weights_and_posterior() -> None:
    assert local_weights(torch.tensor([0, 0.5, 2, 9])).tolist() == pytest.approx([0.075, 0.225, 1.05])
    before, after, u, z = 0.3, 0.8, 1.7, -0.4  # Bayes' rule on a grid
    grid = np.linspace(-8, 8, 200001)
    kept = before / after
    log_p = -((grid - math.sqrt(after) * u) ** 2) / (2 * (1 - after)) - (z - math.sqrt(kept) * grid) ** 2 / (
        2 * (1 - kept)
    )
    p = np.exp(log_p - log_p.max())
    mean = (p * grid).sum() / p.sum()
    to_guess, to_state, variance = posterior(before, after)
    assert to_guess * u + to_state * z == pytest.approx(mean, rel=1e-9)
    assert variance == pytest.approx((p * (grid - mean) ** 2).sum() / p.sum(), rel=1e-9)
    signal = cosine_signal(10)
    assert signal[0] < 1e-9
    assert 0.999 < signal[-1] < 1
    assert (signal.diff() > 0).all()


def test_a_blocks_loss_reaches_no_other_block_and_is_the_weighted_square() -> None:
    torch.manual_seed(0)
    net = NoProp([Block(5, 8, 3) for _ in range(3)], torch.eye(3))
    x, labels = torch.randn(6, 5), torch.tensor([0, 1, 2, 0, 1, 2])
    loss = net.local_loss(x, labels, 2, torch.Generator().manual_seed(1))
    loss.backward()
    touched = [any(p.grad is not None for p in block.parameters()) for block in net.blocks]
    assert touched == [False, True, False]
    z = net.noised(labels, 1, torch.Generator().manual_seed(1))
    snr = net.signal / (1 - net.signal)
    weight = 3 / 2 * 0.1 * (snr[2] - snr[1])
    torch.testing.assert_close(
        loss.double(), weight * (net.blocks[1](z, x) - torch.eye(3)[labels]).square().sum(1).mean()
    )
    with pytest.raises(ValueError, match=r"t must be a whole number in 1\.\.3, got 0"):
        net.local_loss(x, labels, 0)
    with pytest.raises(ValueError, match="labels must be classes below 3"):
        net.loss(x, labels + 1)
    with pytest.raises(ValueError, match="at least one block"):
        NoProp([], torch.eye(3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noprops_noise_is_the_same_in_half_precision(dtype: torch.dtype) -> None:
    net = NoProp([Block(5, 8, 3) for _ in range(3)], torch.eye(3))
    wide, half = net.signal.clone(), net.to(dtype)
    assert torch.equal(half.signal, wide)
    found = half.loss(torch.ones(2, 5, dtype=dtype), torch.tensor([0, 1]), torch.Generator().manual_seed(1))
    assert bool(found.isfinite())


def test_noprop_learns_without_a_backward_pass_through_the_blocks() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 5)
    labels = (x @ wave(5, 3, seed=4).float()).argmax(1)
    net = NoProp([Block(5, 32, 3) for _ in range(4)], torch.eye(3))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        net.loss(x, labels).backward()
        optimizer.step()
    assert (net(x).argmax(1) == labels).float().mean() > 0.8
    assert (net(x, noise=False).argmax(1) == labels).float().mean() > 0.8


def data(size: int = 200) -> tuple[Any, Any]:
    X = np.random.default_rng(0).uniform(-2, 2, (size, 3))
    return X, np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2]


def test_gbnns_step_of_the_sheet() -> None:
    assert newton_step(wave(6, seed=1).numpy(), wave(6, seed=2).numpy()) == pytest.approx(0.6964684265, rel=1e-9)
    assert newton_step(np.zeros(3), np.ones(3)) == 0


def test_gbnn_is_one_perceptron_whose_error_falls_at_every_stage() -> None:
    X, y = data()
    model = GBNNRegressor(stages=30, random_state=0).fit(X, y)
    errors = model.train_score_
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(errors))
    assert errors[-1] == pytest.approx(
        np.mean((y - model.predict(X)) ** 2), rel=1e-9
    )  # the stages' sum is the perceptron's
    torch.testing.assert_close(model.network()(torch.from_numpy(X))[:, 0].detach().numpy(), model.predict(X))
    assert model.hidden_weights_.shape == (3, 30)
    again = clone(model).fit(X, y)
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    stumps = GradientBoostingRegressor(n_estimators=30, max_depth=1, learning_rate=0.5, random_state=0).fit(
        X[:100], y[:100]
    )
    ours = GBNNRegressor(stages=30, random_state=0).fit(X[:100], y[:100])
    assert ours.score(X[100:], y[100:]) > stumps.score(X[100:], y[100:])
    wide = GBNNRegressor(stages=3, units=4, activation="logistic", random_state=0).fit(X, y)
    torch.testing.assert_close(wide.network()(torch.from_numpy(X))[:, 0].detach().numpy(), wide.predict(X))


def test_gbnn_refuses_bad_settings() -> None:
    X, y = data(20)
    for name, value in (
        ("stages", 0),
        ("units", 0),
        ("subsample", 0.0),
        ("learning_rate", 2.0),
        ("activation", "relu"),
    ):
        with pytest.raises(ValueError, match=f"{name} must"):
            GBNNRegressor(**{name: value}).fit(X, y)


@parametrize_with_checks([GBNNRegressor(stages=4, units=2, max_iter=50, random_state=0)])
def test_gbnn_is_a_scikit_learn_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.mark.parametrize("a", [4.0, 50.0, 700.0, 1e5])
def test_steep_timesteps_stay_in_range_and_follow_their_density(a: float) -> None:
    sampler = UShapedTimestep(a=a, low=0.0, high=1.0)
    t = sampler.sample(20_000, generator=torch.Generator().manual_seed(0)).double()
    assert bool(((t >= 0) & (t <= 1)).all())
    near = torch.minimum(t, 1 - t) * a  # exponential, but for the other end
    assert abs(float(near.mean()) - (1 if a > 20 else float(expected_near(a)))) < 0.03
    ends = sampler.density(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    assert bool(ends.isfinite().all())
    torch.testing.assert_close(ends[0].item(), a / 2 * (1 + math.exp(-a)) / -math.expm1(-a))


def expected_near(a: float) -> torch.Tensor:
    """Mean of `a min(t, 1 - t)` by its integral."""
    t = torch.linspace(0, 1, 200_001, dtype=torch.float64)
    density = a * ((a * (t - 1)).exp() + (-a * t).exp()) / (-2 * math.expm1(-a))
    return torch.trapezoid(density * torch.minimum(t, 1 - t) * a, t)

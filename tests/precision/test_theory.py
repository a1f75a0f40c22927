"""Closed forms against simulation, bounds against measured SGD."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from sklearn.datasets import load_breast_cancer

from trimtab.precision.logistic import LogisticRegression
from trimtab.precision.theory import (
    diminishing_step_bound,
    expected_second_moment,
    fixed_step_bound,
    stationary_second_moment,
)

COMBINATIONS = list(itertools.product((0.05, 0.3), (1.0, 0.5, 0.1), ((1.0, 0.0), (0.0, 1.0), (1.0, 0.5))))


def quadratic(step_size: float, q: float, noises: tuple[float, float], steps: int, start: float) -> torch.Tensor:
    """x after `steps` of SGD on x^2, 40,000 independent runs."""
    generator = torch.Generator().manual_seed(7)
    x = torch.full((40_000,), start, dtype=torch.float64)
    for _ in range(steps):
        noise = [variance**0.5 * torch.randn(x.shape, generator=generator, dtype=x.dtype) for variance in noises]
        x = x - step_size * (q * (2.0 * x + noise[0]) + noise[1])
    return x


@pytest.mark.parametrize(("step_size", "q", "noises"), COMBINATIONS)
def test_stationary_variance_is_within_three_standard_errors(
    step_size: float, q: float, noises: tuple[float, float]
) -> None:
    steps = math.ceil(8 / (2 * step_size * q * 2.0)) + 1  # e^-16 of the start is left
    squares = quadratic(step_size, q, noises, min(steps, 900), start=0.0).square()
    setting = {"shrinkage": q, "gradient_variance": noises[0], "quantiser_variance": noises[1]}
    expected = expected_second_moment(min(steps, 900), 0.0, 2.0, step_size, **setting)
    assert abs(squares.mean() - expected) < 3 * squares.std() / len(squares) ** 0.5
    assert expected == pytest.approx(stationary_second_moment(2.0, step_size, **setting), rel=1e-3)


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_moment_on_the_way_is_within_three_standard_errors(steps: int) -> None:
    squares = quadratic(0.1, 0.5, (1.0, 0.5), steps, start=3.0).square()
    expected = expected_second_moment(
        steps, 3.0, 2.0, 0.1, shrinkage=0.5, gradient_variance=1.0, quantiser_variance=0.5
    )
    assert abs(squares.mean() - expected) < 3 * squares.std() / len(squares) ** 0.5


def test_shrinkage_is_a_shorter_step() -> None:
    shrunk = stationary_second_moment(2.0, 0.1, shrinkage=0.25, gradient_variance=3.0)
    assert shrunk == pytest.approx(stationary_second_moment(2.0, 0.025, gradient_variance=3.0))
    same = expected_second_moment(5, 2.0, 2.0, 0.1, shrinkage=0.25, gradient_variance=3.0)
    assert same == pytest.approx(expected_second_moment(5, 2.0, 2.0, 0.025, gradient_variance=3.0))


def test_shrinkage_alone_lowers_the_floor_and_noise_raises_it() -> None:
    full = stationary_second_moment(1.0, 0.1, gradient_variance=1.0)
    assert stationary_second_moment(1.0, 0.1, shrinkage=0.5, gradient_variance=1.0) < full
    assert stationary_second_moment(1.0, 0.1, gradient_variance=1.0, quantiser_variance=0.1) > full


@pytest.fixture(scope="module")
def cancer() -> LogisticRegression:
    data = load_breast_cancer()
    features = torch.tensor(data.data)
    features = (features - features.mean(0)) / features.std(0)
    return LogisticRegression(
        torch.cat([features, torch.ones(len(features), 1)], 1), torch.tensor(2 * data.target - 1), 0.1
    )


def test_constants_of_the_logistic_problem(cancer: LogisticRegression) -> None:
    generator = torch.Generator().manual_seed(0)
    assert cancer.gradient(cancer.minimiser).norm() < 1e-11

    def loss(weights: torch.Tensor) -> torch.Tensor:
        margins = cancer.labels * (cancer.features @ weights)
        return torch.nn.functional.softplus(-margins).mean() + cancer.l2 / 2 * weights.square().sum()

    for scale in (0.0, 0.3, 3.0):
        weights = scale * torch.randn(31, generator=generator, dtype=torch.float64)
        eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, weights))
        assert cancer.convexity - 1e-9 <= eigenvalues.min()
        assert eigenvalues.max() <= cancer.smoothness + 1e-9
        assert torch.allclose(cancer.gradient(weights), torch.func.grad(loss)(weights))
        assert cancer.loss(weights) == pytest.approx(float(loss(weights)))
        assert cancer.loss(weights) >= cancer.minimum
        singles = torch.stack([cancer.gradient(weights, torch.tensor([row])) for row in range(len(cancer))])
        second = singles.square().sum(1).mean()
        assert second <= cancer.variance(1) + cancer.gradient(weights).square().sum()
    largest = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, torch.zeros(31, dtype=torch.float64))).max()
    assert largest == pytest.approx(cancer.smoothness)  # attained at 0


@pytest.mark.parametrize(("q", "noise"), [(1.0, 0.0), (0.5, 0.0), (0.5, 0.3)])
def test_measured_sgd_stays_below_its_bound_and_depends_on_q(
    cancer: LogisticRegression, q: float, noise: float
) -> None:
    generator = torch.Generator().manual_seed(1)
    batch, runs, steps = 8, 12, 150
    step_size = q / cancer.smoothness
    gaps = torch.zeros(steps, dtype=torch.float64)
    for _ in range(runs):
        weights = torch.zeros(31, dtype=torch.float64)
        for step in range(steps):
            gaps[step] += (cancer.loss(weights) - cancer.minimum) / runs
            rows = torch.randint(len(cancer), (batch,), generator=generator)
            error = noise / 31**0.5 * torch.randn(31, generator=generator, dtype=torch.float64)
            weights = weights - step_size * (q * cancer.gradient(weights, rows) + error)
    setting = {
        "smoothness": cancer.smoothness,
        "convexity": cancer.convexity,
        "variance": cancer.variance(batch),
        "q_min": q,
        "quantiser_variance": noise**2,
    }
    bounds = [fixed_step_bound(step, float(gaps[0]), step_size, **setting) for step in range(1, steps + 1)]
    assert all(float(gap) <= bound + 1e-12 for gap, bound in zip(gaps, bounds, strict=True))
    assert gaps[-1] < gaps[0] / 3
    slower = fixed_step_bound(50, 1.0, 0.1 * step_size, **{**setting, "q_min": q / 2})
    assert slower > fixed_step_bound(50, 1.0, 0.1 * step_size, **setting)


def test_diminishing_steps_have_no_floor() -> None:
    setting = {"smoothness": 1.0, "convexity": 0.1, "variance": 1.0, "q_min": 0.5, "quantiser_variance": 0.2}
    values = [diminishing_step_bound(step, 1.0, 40.0, 100.0, **setting) for step in (1, 10, 1000, 10**6)]
    assert values == sorted(values, reverse=True)
    assert values[0] >= 1.0  # the start lies below its bound
    assert values[-1] < 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stationary_second_moment(1.0, 3.0), "below 2"),
        (lambda: stationary_second_moment(1.0, 0.1, shrinkage=1.5), r"shrinkage must lie in \(0, 1\]"),
        (lambda: stationary_second_moment(1.0, 0.1, gradient_variance=-1.0), "gradient_variance"),
        (lambda: stationary_second_moment(math.nan, 0.1), "curvature"),
        (lambda: expected_second_moment(-1, 0.0, 1.0, 0.1), "step must be"),
        (lambda: fixed_step_bound(0, 1.0, 0.1, smoothness=1, convexity=0.1, variance=1), "1 or more"),
        (lambda: fixed_step_bound(1, 1.0, 2.0, smoothness=1, convexity=0.1, variance=1), "at most q_min"),
        (lambda: fixed_step_bound(1, 1.0, 0.1, smoothness=1, convexity=2.0, variance=1), "convexity"),
        (lambda: fixed_step_bound(1, 1.0, 0.1, smoothness=1, convexity=0.1, variance=1, growth=0.5), "growth"),
        (lambda: diminishing_step_bound(1, 1.0, 1.0, 9.0, smoothness=1, convexity=0.1, variance=1), "beta must exceed"),
        (lambda: diminishing_step_bound(1, 1.0, 20.0, 1.0, smoothness=1, convexity=0.1, variance=1), "raise gamma"),
        (lambda: LogisticRegression(torch.ones(2, 1), torch.tensor([0, 1]), 0.1), "labels must be -1 or"),
        (lambda: LogisticRegression(torch.ones(2, 1), torch.tensor([1]), 0.1), "labels must have shape"),
        (lambda: LogisticRegression(torch.full((2, 1), math.nan), torch.tensor([1, -1]), 0.1), "not finite"),
        (lambda: LogisticRegression(torch.ones(2, 1), torch.tensor([1, -1]), 0.0), "l2 must be"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]

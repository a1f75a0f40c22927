"""SGD with rounded gradients on logistic regression: against a loop written anew, its prediction and its bound."""

from __future__ import annotations

import pytest
import torch

from trimtab.precision import quantize
from trimtab.precision.logistic import LogisticRegression
from trimtab.studies.precision.logistic import (
    Descent,
    breast_cancer,
    descend,
    wanted_descents,
)


@pytest.fixture(scope="module")
def problem() -> LogisticRegression:
    """200 rows, five weights."""
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(200, 5, generator=generator, dtype=torch.float64)
    labels = torch.where(features @ torch.tensor([1.0, -2.0, 0.5, 0.0, 1.0]).double() > 0, 1, -1)
    return LogisticRegression(features, labels, 0.1)


def run(problem: LogisticRegression, *given: str, **settings: object) -> Descent:
    return descend(*given, problem=problem, **{"steps": 600, "repetitions": 40, "batch": 16, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize("format", ["full", "e2m1"])
def test_it_is_sgd_with_rounded_gradients(problem: LogisticRegression, format: str) -> None:
    found = run(problem, format, steps=30, repetitions=3, step_size=0.2, seed=5)
    draws = torch.Generator().manual_seed(5)
    weights = [torch.zeros(5, dtype=torch.float64) for _ in range(3)]
    gaps = {}
    for step in range(1, 31):
        gaps[step] = sum(problem.loss(own) - problem.minimum for own in weights) / 3
        rows = torch.randint(200, (3, 16), generator=draws)
        gradients = [problem.gradient(own, drawn) for own, drawn in zip(weights, rows, strict=True)]
        if format != "full":
            gradients = [quantize(gradient, format) for gradient in gradients]
        weights = [own - 0.2 * gradient for own, gradient in zip(weights, gradients, strict=True)]
    assert found.gap == pytest.approx([gaps[step] for step in found.steps], rel=1e-9)


def test_full_precision_shrinks_nothing_and_lies_between_prediction_and_bound(problem: LogisticRegression) -> None:
    full = run(problem, "full")
    assert full.q == pytest.approx(1.0)
    assert (full.q_min, full.dead, full.noise) == (pytest.approx(1.0), 0.0, pytest.approx(0.0, abs=1e-25))
    assert full.bound is not None
    assert full.floor_predicted is not None
    assert all(gap - half <= bound for gap, half, bound in zip(full.gap, full.half, full.bound, strict=True))
    assert full.floor == pytest.approx(full.floor_predicted, rel=0.15)


def test_unbiased_rounding_raises_the_floor_as_predicted(problem: LogisticRegression) -> None:
    full, coarse = run(problem, "full"), run(problem, "e2m1", "stochastic")
    assert coarse.noise > 0
    assert coarse.floor - coarse.floor_half > full.floor + full.floor_half
    assert coarse.floor == pytest.approx(coarse.floor_predicted, rel=0.15)
    assert coarse.bound is not None
    assert all(gap - half <= bound for gap, half, bound in zip(coarse.gap, coarse.half, coarse.bound, strict=True))


def test_dead_gradients_have_no_prediction_and_no_bound_and_say_why(problem: LogisticRegression) -> None:
    faint = LogisticRegression(
        problem.features / 10, problem.labels, 0.1
    )  # every entry of a gradient is below one half
    dead = run(faint, "int4", steps=40)
    assert (dead.q, dead.q_min, dead.dead) == (None, 0.0, 1.0)
    assert dead.prediction is None
    assert dead.bound is None
    assert "q_min = 0" in dead.why_no_bound
    assert dead.gap[-1] == pytest.approx(dead.gap[0])
    with_scale = run(faint, "int4", "nearest", "tensor", steps=40)
    assert with_scale.bound is not None


def test_a_scale_revives_them(problem: LogisticRegression) -> None:
    scaled = run(problem, "int4", "nearest", "tensor", steps=300)
    assert scaled.q is not None
    assert scaled.q > 0.9
    assert scaled.gap[-1] < 0.2 * scaled.gap[0]


def test_the_data_is_scikit_learns() -> None:
    problem = breast_cancer()
    assert (len(problem), problem.features.shape[1]) == (569, 31)
    assert problem.gradient(problem.minimiser).norm() < 1e-10


def test_blocks_and_tensors_share_one_descent() -> None:
    assert wanted_descents(["e2m1"], ["nearest", "stochastic"], ["none", "tensor", "mx"]) == [
        ("full", "nearest", "none"),
        ("e2m1", "nearest", "none"), ("e2m1", "nearest", "tensor"),
        ("e2m1", "stochastic", "none"), ("e2m1", "stochastic", "tensor"),
    ]  # fmt: skip

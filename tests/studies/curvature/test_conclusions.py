"""Ratios, rank correlations over methods and the headline."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from trimtab.studies.curvature.conclusions import (
    curvature_headline,
    rank_correlation_over_methods,
    ratio_to,
    robustness,
)
from trimtab.studies.curvature.records import CurvatureRow, PrunedAccuracy


def row(method: str, seed: int, sharp: float, accuracy: float, sparsity: float = 0.0) -> CurvatureRow:
    values: dict[str, Any] = {
        "method": method, "seed": seed, "sparsity": sparsity, "recalibrated": bool(sparsity), "accuracy": accuracy,
        "split": "test", "loss": 1.0, "gradient_norm": 0.1, "weight_norm": 2.0, "coordinates": 10,
        "eigenvalues": [100 * sharp], "residuals": [0.1], "converged": True, "trace": 500 * sharp, "trace_error": 1.0,
        "sharpness": sharp, "sharpness_one_step": sharp, "adaptive_sharpness": 2 * sharp,
        "normalized_eigenvalue": 400 * sharp, "normalized_trace": 200 * sharp, "products": 20,
    }  # fmt: skip
    return CurvatureRow(**values)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=20))
def test_equals_scipy(pairs: list[tuple[int, int]]) -> None:
    found = rank_correlation_over_methods([("m", float(x), float(y)) for x, y in pairs])
    x, y = np.array(pairs).T
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
        assert found.low is None


def test_seeds_of_a_method_are_no_independent_evidence() -> None:
    generator = np.random.default_rng(1)
    level = {f"m{at}": generator.normal(size=2) for at in range(6)}
    points = [
        (name, *(values + 0.01 * generator.normal(size=2)).tolist())
        for name, values in level.items()
        for _ in range(20)
    ]
    clustered = rank_correlation_over_methods(points)
    separate = rank_correlation_over_methods([(str(at), x, y) for at, (_, x, y) in enumerate(points)])
    assert clustered is not None
    assert separate is not None
    assert clustered.value == separate.value
    assert clustered.low is not None and clustered.high is not None  # noqa: PT018
    assert separate.low is not None and separate.high is not None  # noqa: PT018
    assert clustered.high - clustered.low > 2 * (separate.high - separate.low)


def test_the_interval_covers_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        points = [(f"m{at}", float(generator.normal()), float(generator.normal())) for at in range(10)]
        found = rank_correlation_over_methods(points, seed=trial, resamples=400)
        assert found is not None
        covered += not found.excludes_zero
    assert covered >= 50  # independent x and y: the interval holds zero


def test_robustness_uses_the_dense_measure_and_what_pruning_leaves() -> None:
    rows = [row(f"m{at}", 0, sharp=1.0 + at, accuracy=0.5 + 0.01 * at) for at in range(5)]
    rows += [row(f"m{at}", 0, sharp=9.0 - at, accuracy=0.45, sparsity=0.5) for at in range(5)]
    pruned = [PrunedAccuracy(method=f"m{at}", seed=0, sparsity=0.9, accuracy=0.4 - 0.05 * at) for at in range(5)]
    found = {(one.measure, one.sparsity): one for one in robustness(rows, pruned)}
    assert found["sharpness", 0.9].kept.value == pytest.approx(-1)
    assert found["sharpness", 0.9].accuracy.value == pytest.approx(-1)
    assert ("sharpness", 0.5) not in found  # equal accuracies have no rank
    rows += [row(f"n{at}", 0, sharp=0.5 + 0.01 * at, accuracy=0.5) for at in range(2)]
    assert len(robustness(rows, pruned)) == len(found)  # networks that were not pruned do not count
    assert "\N{MINUS SIGN}1.00 (\N{MINUS SIGN}1.00 to \N{MINUS SIGN}1.00) at 90 %" in curvature_headline(rows, pruned)


def test_ratios_are_geometric_and_paired() -> None:
    rows = [row("sgd", seed, sharp, 0.5) for seed, sharp in ((0, 1.0), (1, 10.0), (2, 3.0))]
    rows += [row("var", seed, sharp, 0.5) for seed, sharp in ((2, 1.5), (0, 0.5), (1, 5.0))]
    found = ratio_to(rows, "var", "sgd", "eigenvalue", 0.0)
    assert found is not None
    assert math.exp(found.mean) == pytest.approx(0.5)
    assert found.half == pytest.approx(0, abs=1e-9)
    assert ratio_to([*rows, row("odd", 0, -1.0, 0.5)], "odd", "sgd", "eigenvalue", 0.0) is None


def test_a_single_network_has_a_headline() -> None:
    assert (
        curvature_headline([row("var", 0, 1.5, 0.5)])
        == "1 dense network: largest eigenvalue 150; adaptive sharpness 3."
    )
    with pytest.raises(ValueError, match="no measured network"):
        curvature_headline([])

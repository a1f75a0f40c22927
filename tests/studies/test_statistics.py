from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trimtab.studies.statistics import (
    against,
    estimate,
    main_rows,
    paired_difference,
    sparsity_label,
    table,
)
from trimtab.studies.summary import Row

NUMBERS = st.lists(st.floats(-10, 10), min_size=2, max_size=8)


def row(method: str = "sgd", seed: int = 0, sparsity: float = 0.9, accuracy: float = 0.5, **more: object) -> Row:
    fields = {"sparsity_total": sparsity, "recalibrated": False, "loss": 1.0, **more}
    return Row(method=method, seed=seed, sparsity=sparsity, accuracy=accuracy, **fields)


@given(NUMBERS, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_equals_scipys(values: list[float], confidence: float) -> None:
    found = estimate(values, confidence)
    assert found.n == len(values)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    if found.std > 1e-6:
        oracle = stats.ttest_1samp(values, 0).confidence_interval(confidence)
        assert (found.low, found.high) == (pytest.approx(oracle.low, rel=1e-6), pytest.approx(oracle.high, rel=1e-6))


@given(NUMBERS, st.floats(-5, 5), st.floats(0.1, 5))
def test_interval_moves_with_shift_and_scale(values: list[float], shift: float, scale: float) -> None:
    before, after = estimate(values), estimate([scale * value + shift for value in values])
    assert after.low == pytest.approx(scale * before.low + shift, abs=1e-7)
    assert after.half == pytest.approx(scale * before.half, abs=1e-7)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(3.0, 2.0, (2000, 3))
    covered = np.mean([found.low <= 3.0 <= found.high for found in map(estimate, draws)])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_one_value_has_no_interval() -> None:
    found = estimate([0.7])
    assert (found.n, found.mean, found.std, found.low, found.high, found.half) == (1, 0.7, None, None, None, None)
    assert not found.excludes_zero


@pytest.mark.parametrize(
    ("values", "confidence", "message"),
    [([], 0.95, "at least one"), ([0.1, math.nan], 0.95, "nan"), ([math.inf], 0.95, "inf"), ([0.1], 1.0, "confidence")],
)
def test_estimate_refuses(values: list[float], confidence: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        estimate(values, confidence)


def test_difference_is_paired_by_seed() -> None:
    own, other = [(0, 0.9), (1, 0.5), (2, 0.7)], [(2, 0.6), (0, 0.79), (1, 0.41), (5, 0.0)]
    found = paired_difference(own, other)
    oracle = stats.ttest_rel([0.9, 0.5, 0.7], [0.79, 0.41, 0.6]).confidence_interval()
    assert (found.low, found.high) == (pytest.approx(oracle.low), pytest.approx(oracle.high))
    assert found.excludes_zero  # unpaired, the spread between seeds would drown it
    assert stats.ttest_ind([0.9, 0.5, 0.7], [0.79, 0.41, 0.6]).pvalue > 0.5
    assert paired_difference([(0, 1.0)], [(1, 1.0)]) is None


def test_table_groups_over_seeds_and_takes_the_difference_to_the_own_dense_network() -> None:
    rows = [
        row("var", seed, sparsity, accuracy)
        for seed, sparsity, accuracy in [(1, 0.9, 0.6), (0, 0.9, 0.5), (0, 0.0, 0.9), (1, 0.0, 0.8)]
    ] + [row("sgd", 0, 0.9, 0.1), row("var", 0, 0.9, 0.2, score="random"), row("var", 0, 0.9, 0.7, recalibrated=True)]
    entries = table(rows)
    assert [(e.method, e.score, e.recalibrated, e.sparsity, e.n) for e in entries] == [
        ("var", "magnitude", False, 0.0, 2),
        ("var", "magnitude", False, 0.9, 2),
        ("var", "magnitude", True, 0.9, 1),
        ("var", "random", False, 0.9, 1),
        ("sgd", "magnitude", False, 0.9, 1),
    ]
    pruned = entries[1]
    assert pruned.values == ((0, 0.5), (1, 0.6))
    assert pruned.mean == pytest.approx(0.55)
    assert pruned.to_dense is not None
    assert pruned.to_dense.mean == pytest.approx(-0.3)
    assert entries[2].to_dense is None


def test_against_compares_at_the_same_point_only() -> None:
    rows = [row("sgd", 0, 0.9, 0.1), row("sgd", 0, 0.8, 0.3), row("var", 0, 0.9, 0.4)]
    rows += [row("var", 0, 0.8, 0.9, recalibrated=True), row("sam", 7, 0.8, 0.9)]
    found = against(table(rows), "sgd")
    assert [(entry.method, entry.sparsity, round(difference.mean, 9)) for entry, difference in found] == [
        ("var", 0.9, 0.3)
    ]


def test_other_fields_leave_out_rows_without_them() -> None:
    assert [e.mean for e in table([row(iou=0.4), row("var")], field="iou")] == [0.4]


def test_table_refuses_a_network_measured_twice_and_nan() -> None:
    with pytest.raises(ValueError, match=r"two rows for 'sgd' seed 0 at sparsity 0.9"):
        table([row(), row(accuracy=0.6)])
    with pytest.raises(ValueError, match=r"nan for 'sgd'"):
        table([row(accuracy=math.nan)])


def test_main_rows_are_those_with_files_then_global_magnitude_on_test() -> None:
    layer, overall, rand = row(scope="layer"), row(), row(score="random")
    assert main_rows([layer, rand, overall]) == [overall]
    filed = row(scope="erk", file_bytes=10)
    assert main_rows([overall, layer, filed]) == [filed]
    assert main_rows([rand, layer]) == [layer]
    assert main_rows([row(split="validation"), overall]) == [overall]
    assert main_rows([]) == []


@given(st.floats(0.001, 0.9999))
def test_sparsity_label_names_density_and_sparsity_within_one_percent(sparsity: float) -> None:
    named = float(sparsity_label(sparsity).removesuffix(" %")) / 100
    assert abs(named - sparsity) <= 0.0101 * min(sparsity, 1 - sparsity)

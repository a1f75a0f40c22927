from __future__ import annotations

import math

import pytest

from trimtab.studies.statistics import table
from trimtab.studies.summary import Row
from trimtab.studies.weights.headline import headline, operating_point


def rows(values: dict[str, dict[float, list[float]]], recalibrated: bool = False, **more: object) -> list[Row]:
    """Accuracies by method, then by sparsity, over seeds 0, 1, ..."""
    return [
        Row(
            method=method, seed=seed, sparsity=sparsity, sparsity_total=sparsity, accuracy=accuracy, loss=1.0,
            recalibrated=recalibrated, **more,
        )
        for method, points in values.items()
        for sparsity, accuracies in points.items()
        for seed, accuracy in enumerate(accuracies)
    ]  # fmt: skip


DENSE = [0.95, 0.96, 0.94]


def test_names_the_better_method_with_its_interval() -> None:
    found = headline(
        rows({"sgd": {0.0: DENSE, 0.9: [0.30, 0.32, 0.28]}, "var": {0.0: DENSE, 0.9: [0.70, 0.73, 0.67]}}),
        "accuracy",
        0.1,
    )
    assert found == (
        "Without recalibration, var keeps the most accuracy at 90 % sparsity: 70.0 % against 30.0 % for sgd, "
        "+40.0 points (95 % interval +37.5 to +42.5, 3 seeds)."
    )


def test_says_so_when_the_interval_includes_zero() -> None:
    found = headline(
        rows({"sgd": {0.0: DENSE, 0.9: [0.70, 0.60, 0.80]}, "var": {0.0: DENSE, 0.9: [0.72, 0.80, 0.70]}}),
        "accuracy",
        0.1,
    )
    assert "no method is distinguishable from sgd at 90 % sparsity" in found
    assert "+4.0 points" in found
    assert "keeps the most" not in found


def test_says_so_when_every_other_method_is_worse() -> None:
    found = headline(
        rows({"sgd": {0.0: DENSE, 0.9: [0.8, 0.81, 0.79]}, "l1": {0.0: DENSE, 0.9: [0.6, 0.61, 0.59]}}), "accuracy", 0.1
    )
    assert "no method is better than sgd" in found
    assert "l1's 60.0 %: -20.0 points" in found


def test_a_higher_but_uncertain_mean_does_not_win() -> None:
    values = {"sgd": [0.5, 0.5, 0.5], "sam": [0.60, 0.61, 0.59], "wild": [0.99, 0.40, 0.80]}
    found = headline(rows({m: {0.0: DENSE, 0.9: v} for m, v in values.items()}), "accuracy", 0.1)
    assert "sam beats sgd in accuracy at 90 % sparsity: 60.0 %" in found
    assert "wild's mean is higher, 73.0 %, but not distinguishable from sgd" in found


def test_one_seed_has_no_interval() -> None:
    found = headline(rows({"sgd": {0.0: [0.95], 0.9: [0.3]}, "var": {0.0: [0.95], 0.9: [0.7]}}), "accuracy", 0.1)
    assert "one seed: no interval" in found
    assert "distinguish" not in found
    assert "var has the highest accuracy at 90 % sparsity, 70.0 %, +40.0 points" in found


def test_one_seed_where_the_baseline_is_best() -> None:
    found = headline(rows({"sgd": {0.0: [0.95], 0.9: [0.8]}, "var": {0.0: [0.95], 0.9: [0.7]}}), "accuracy", 0.1)
    assert "sgd has the highest accuracy at 90 % sparsity, 80.0 %, next is var with -10.0 points" in found


def test_both_states_are_spoken_of_each_at_its_own_sparsity() -> None:
    pruned = rows({"sgd": {0.0: DENSE, 0.9: [0.8, 0.8, 0.8], 0.98: [0.1, 0.1, 0.1]}})
    again = rows({"sgd": {0.0: DENSE, 0.9: [0.9, 0.9, 0.9], 0.98: [0.7, 0.7, 0.7]}}, recalibrated=True)
    found = headline(pruned + again, "dice", 0.0)
    assert found.startswith("Without recalibration, sgd keeps 80.0 % +- 0.0 Dice at 90 % sparsity (3 seeds)")
    assert found.endswith("with recalibration, sgd keeps 70.0 % +- 0.0 Dice at 98 % sparsity (3 seeds).")


def test_controls_do_not_enter() -> None:
    points = {"sgd": {0.0: DENSE, 0.9: [0.5, 0.5, 0.5]}}
    control = rows({"sgd": {0.0: DENSE, 0.9: [0.99, 0.99, 0.99]}}, scope="layer")
    assert headline(control + rows(points), "accuracy", 0.1) == headline(rows(points), "accuracy", 0.1)


def test_missing_baseline_and_disjoint_seeds_are_said() -> None:
    values = {"var": {0.0: DENSE, 0.9: [0.7, 0.7, 0.7]}, "sam": {0.0: DENSE, 0.9: [0.6, 0.6, 0.6]}}
    assert "no sgd run to compare with" in headline(rows(values), "accuracy", 0.1)
    lonely = rows({"sgd": {0.0: [0.9], 0.9: [0.8]}}) + [
        row.model_copy(update={"seed": 7}) for row in rows({"var": {0.0: [0.9], 0.9: [0.8]}})
    ]
    assert "no method shares a seed with sgd" in headline(lonely, "accuracy", 0.1)


def test_operating_point_is_the_highest_that_keeps_half_of_the_way_from_chance() -> None:
    entries = table(rows({"sgd": {0.0: [0.9], 0.8: [0.8], 0.9: [0.5], 0.95: [0.49], 0.98: [0.2]}}))
    assert operating_point(entries, 0.1) == 0.9
    faint = table(rows({"sgd": {0.0: DENSE, 0.9: [0.2, 0.21, 0.19], 0.95: [0.10, 0.12, 0.09]}}))
    assert operating_point(faint, 0.1) == 0.9
    dead = rows({"sgd": {0.0: DENSE, 0.9: [0.1, 0.1, 0.1]}})
    assert operating_point(table(dead), 0.1) is None
    assert "no method stays above chance" in headline(dead, "accuracy", 0.1)


def test_no_rows_and_nan_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        headline([], "accuracy", 0.1)
    with pytest.raises(ValueError, match="finite"):
        headline(rows({"sgd": {0.9: [math.nan]}}), "accuracy", 0.1)

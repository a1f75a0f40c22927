"""Dynamics: points, layers and numbers drawn from a tracker's rows, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.report.factory import LAYERS, tracker_rows
from trimtab.runs.tracked import POINTS, tracked
from trimtab.studies.gradients.dynamics import (
    dynamics,
    in_words,
    rank_correlation,
    without_curves,
)
from trimtab.studies.summary import Dynamics


def rows(stds: dict[str, list[float]], kind: str = "gradients", **changes: list[float]) -> dict[str, np.ndarray]:
    """Columns of layers with the given standard deviations at steps 0, 5, 10, ...; "(global)" must be among them."""
    table: dict[str, list[object]] = {
        name: [] for name in ("step", "layer", "kind", "n", "std", "norm", "zeros", "nan", "inf")
    }
    for layer, values in stds.items():
        for at, value in enumerate(values):
            own = {"step": 5 * at, "layer": layer, "kind": kind, "n": 4, "std": value, "norm": 2 * value}
            own |= {"zeros": 4 if value == 0 else 0, "nan": 0, "inf": 0}
            for name, cell in own.items():
                table[name].append(cell)
    for name, values in changes.items():
        table[name] = list(values)
    return {name: np.array(values, dtype=object) for name, values in table.items()}


def of(columns: dict[str, np.ndarray], signals: dict[str, list[object]] | None = None) -> Dynamics:
    found = dynamics(columns, signals, method="sgd", seed=3)
    assert found is not None
    return found


def test_numbers_by_hand() -> None:
    found = of(rows({"a": [8.0, 4.0, 2.0, 1.0], "b": [2.0, 2.0, 0.0, 0.5], "(global)": [6.0, 3.0, 2.0, 0.5]}))
    assert (found.method, found.seed, found.tracked, found.steps) == ("sgd", 3, 4, [0, 5, 10, 15])
    assert found.std == [6.0, 3.0, 2.0, 0.5]
    assert [layer.name for layer in found.layers] == ["a", "b"]  # the network's order, the global row is none of them
    assert found.layers[0].log10_std == pytest.approx([math.log10(x) for x in (8, 4, 2, 1)], abs=1e-4)
    assert found.layers[1].log10_std[2] is None  # a dead layer has no logarithm
    assert (found.layers[0].first, found.layers[0].last) == (8.0, 1.0)
    assert found.facts.heterogeneity == 2.0  # of 4, 2, 1 (the dead layer is left out) and 2
    assert (found.facts.fall, found.facts.trend) == (12.0, -1.0)
    assert found.dead == [0, 0, 1, 0]
    assert (found.layers[1].dead, found.facts.dead) == (0.25, 0)
    assert found.update_ratio == []
    assert found.facts.update_ratio is None
    assert found.signals == {}


def test_update_to_weight_ratio_pairs_the_same_step_and_layer() -> None:
    gradients = rows({"a": [1.0, 1.0], "b": [1.0, 1.0], "(global)": [1.0, 1.0]})
    weights = rows({"b": [10.0, 10.0], "a": [4.0, 2.0], "(global)": [8.0, 5.0]}, "weights")
    updates = rows({"a": [0.4, 0.1], "b": [1.0, 2.0], "(global)": [0.8, 1.0]}, "updates")
    together = {name: np.concatenate([gradients[name], weights[name], updates[name]]) for name in gradients}
    found = of(together)
    assert found.update_ratio == [0.1, 0.2]
    assert [layer.update_ratio for layer in found.layers] == pytest.approx([0.075, 0.15])
    assert found.facts.update_ratio == pytest.approx(0.15)
    only_updates = {name: np.concatenate([gradients[name], updates[name]]) for name in gradients}
    assert of(only_updates).update_ratio == []


def test_not_finite_is_counted_and_never_becomes_a_number() -> None:
    nan = float("nan")
    found = of(
        rows({"a": [1.0, nan, 2.0], "(global)": [1.0, nan, 2.0]}, nan=[0, 3, 0, 0, 3, 0], inf=[0, 1, 0, 0, 1, 0])
    )
    assert found.std == [1.0, None, 2.0]
    assert found.layers[0].log10_std[1] is None
    assert found.non_finite == [0, 4, 0]
    assert (found.layers[0].non_finite, found.facts.non_finite) == (4, 4)
    assert Dynamics.model_validate_json(found.model_dump_json()) == found  # JSON has no NaN
    assert "4 gradient entries were NaN or infinite" in in_words([found])


def test_many_steps_become_few_points_that_hide_no_count() -> None:
    columns, signals = tracker_rows(steps=1000, every=3)
    found = of(columns, signals)
    assert found.tracked == 1000
    assert len(found.steps) == len(found.std) == len(found.dead) == len(found.signals["alpha"]) == POINTS
    assert found.steps[-1] == 2997
    assert max(found.non_finite) == 2  # one step of the thousand
    assert found.facts.alpha == pytest.approx((0.2008, 1.0), abs=1e-4)
    assert found.facts.dead == 1
    assert [layer.name for layer in found.layers] == list(LAYERS)
    assert without_curves(found).layers[0].log10_std == []
    assert without_curves(found).facts == found.facts


def test_rows_in_any_order_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    columns, signals = tracker_rows(steps=20)
    by_step = np.argsort(columns["step"].astype(int), kind="stable")[::-1]
    shuffled = {name: values[by_step] for name, values in columns.items()}
    one, other = of(columns, signals), of(shuffled, signals)
    assert one.std == other.std
    assert {la.name: la.log10_std for la in one.layers} == {la.name: la.log10_std for la in other.layers}


def test_without_gradients_there_are_no_dynamics() -> None:
    columns = rows({"a": [1.0], "(global)": [1.0]}, "weights")
    assert dynamics(columns, None, method="sgd", seed=0) is None
    assert tracked(columns, "weights") is not None


@pytest.mark.parametrize(
    ("values", "expected"), [([1.0, 2.0], None), ([1.0, 1.0, 1.0], None), ([3.0, math.nan, 2.0, 9.0, 1.0], -0.4)]
)
def test_rank_correlation(values: list[float], expected: float | None) -> None:
    assert rank_correlation(np.array(values)) == expected


def test_in_words_speaks_of_ranges() -> None:
    one = of(rows({"a": [8.0, 1.0, 1.0], "(global)": [8.0, 2.0, 1.0]}))
    two = of(rows({"a": [4.0, 1.0, 1.0], "(global)": [4.0, 2.0, 1.0]}))
    text = in_words([one, two])
    assert "In these 2 runs" in text
    assert "12.5 to 25 %" in text
    assert "every gradient was finite" in text
    with pytest.raises(ValueError, match="no tracked run"):
        in_words([])

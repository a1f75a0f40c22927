"""How far a method holds the dense baseline, by hand-made rows whose answer is known."""

from __future__ import annotations

import pytest

from trimtab.studies.statistics import table
from trimtab.studies.summary import Row
from trimtab.studies.weights.verdict import ACCURACY, best_and_baseline, cost_words, held, place, verdict_words


def rows(method: str, *means: float, seeds: tuple[float, ...] = (-0.001, 0.0, 0.001)) -> list[Row]:
    """Means at dense, 50, 80 and 90 %, three seeds around each."""
    return [
        Row(method=method, seed=seed, sparsity=sparsity, sparsity_total=sparsity, recalibrated=True, accuracy=mean + shift,
            loss=1.0)
        for mean, sparsity in zip(means, (0.0, 0.5, 0.8, 0.9), strict=True)
        for seed, shift in enumerate(seeds)
    ]  # fmt: skip


STUDY = table([
    *rows("sgd", 0.90, 0.89, 0.87, 0.50), *rows("cram+", 0.90, 0.90, 0.89, 0.885), *rows("l1", 0.84, 0.84, 0.84, 0.84),
    *rows("back", 0.90, 0.80, 0.895, 0.10), *rows("late", 0.89, 0.89, 0.885, 0.60),
])  # fmt: skip


def test_a_method_reaches_the_last_sparsity_before_the_first_that_fails() -> None:
    found = {one.method: one for one in held(STUDY, "sgd", {"cram+": 2.3})}
    reached = {name: one.sparsity for name, one in found.items()}
    assert reached == {
        "sgd": 0.5,
        "cram+": 0.9,
        "l1": None,
        "back": 0.0,
        "late": 0.8,
    }  # back is whole again at 80 %: too late
    assert found["cram+"].certain == 0.9
    assert found["late"].certain == 0.8
    assert found["l1"].dense_cost == pytest.approx(0.06)
    assert cost_words(found["cram+"]) == "a step takes 2.30x"
    assert cost_words(found["l1"]) == "costs 6.0 points dense"
    assert [place(found[name]) for name in ("cram+", "back", "l1")] == ["to 90 %", "dense only", "not even dense"]


def test_the_best_three_come_with_the_baseline_and_a_winner_is_not_crowned_in_silence() -> None:
    found = held(STUDY, "sgd", {})
    assert [one.method for one in best_and_baseline(found, "sgd", 2)] == ["cram+", "late", "sgd"]
    text = verdict_words(found, STUDY, "sgd", ACCURACY, 0.9)
    assert text.startswith("Within 2 points of the dense baseline (sgd, 90.0 % accuracy): cram+ to 90 %, late to 80 %")
    assert "At 90 %, cram+ keeps 88.5 %, sgd 50.0 %." in text
    lossy = table([*rows("sgd", 0.90, 0.8, 0.5, 0.3), *rows("l1", 0.84, 0.84, 0.84, 0.84)])
    assert "Dense, l1 costs 6.0 points." in verdict_words(held(lossy, "sgd", {}), lossy, "sgd", ACCURACY, 0.9)


def test_without_the_baselines_dense_network_nothing_is_held() -> None:
    assert held([entry for entry in STUDY if entry.sparsity], "sgd", {}) == []

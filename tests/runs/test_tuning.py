"""Tuning chooses by validation rows only."""

from __future__ import annotations

import pytest

from trimtab.runs.recipe import Recipe
from trimtab.studies.summary import Row
from trimtab.studies.variants import variants
from trimtab.studies.weights.tuning import choose, chosen_settings, pruning_score


def row(accuracy: float, sparsity: float = 0.9, recalibrated: bool = False, split: str = "validation") -> Row:
    return Row(
        method="m", seed=0, sparsity=sparsity, sparsity_total=sparsity, recalibrated=recalibrated, accuracy=accuracy,
        loss=1.0, split=split,
    )  # fmt: skip


def test_score_leaves_the_dense_network_out_and_honours_the_criterion() -> None:
    rows = [row(0.99, 0.0), row(0.6), row(0.4, 0.95), row(0.9, recalibrated=True), row(0.8, 0.95, recalibrated=True)]
    assert pruning_score(rows, "plain") == pytest.approx(0.5)
    assert pruning_score(rows, "recalibrated") == pytest.approx(0.85)
    assert pruning_score(rows, "both") == pytest.approx(0.675)
    assert pruning_score(rows, "dense") == pytest.approx(0.99)
    with pytest.raises(ValueError, match="no row of the dense"):
        pruning_score(rows[1:], "dense")


def test_test_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="validation split only"):
        pruning_score([row(0.5, split="test")], "plain")


def test_each_method_gets_its_own_best() -> None:
    found = variants(Recipe(), ["var", "l1"], [0], {"var.strength": [1e-6, 1e-5], "l1.strength": [1e-4, 1e-3]})
    scores = [0.5, 0.7, 0.9, 0.2]
    choices = choose([(variant, [row(score)]) for variant, score in zip(found, scores, strict=True)], "plain")
    assert chosen_settings(choices, ["var.strength", "l1.strength"]) == {"var.strength": 1e-5, "l1.strength": 1e-4}


def test_seeds_are_averaged() -> None:
    found = variants(Recipe(), ["var"], [0, 1], {"var.strength": [1e-6, 1e-5]})
    scores = [0.9, 0.6, 0.1, 0.6]
    choices = choose([(variant, [row(score)]) for variant, score in zip(found, scores, strict=True)], "plain")
    assert choices[0].best.recipe.var.strength == 1e-5

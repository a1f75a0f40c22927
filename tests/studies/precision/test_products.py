"""Errors of products from a meter's rows, and what they predict."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.report.precision_factory import with_products
from trimtab.runs.recipe import Recipe
from trimtab.studies.precision.prediction import agreement, parts_of, predictions, rank_correlation
from trimtab.studies.precision.products import early, product_errors
from trimtab.studies.precision.records import shrinkage_curves
from trimtab.studies.precision.variants import FormatStudy, format_variants


def meter_rows() -> dict[str, Any]:
    """Two layers and both together, three metered steps, the last after step 100."""
    rows: list[dict[str, Any]] = []
    for step in (0, 50, 150):
        for kind in ("fprop", "wgrad", "wgrad gradient", "fprop weight"):
            for place, layer in enumerate(("a", "b", "(global)")):
                rows.append(
                    {
                        "step": step, "layer": layer, "kind": kind, "projection": 0.9 + 0.01 * place, "overflow": 0.0,
                        "noise_to_signal": 0.1, "dead": 0.5 if kind == "wgrad gradient" else 0.0, "scale_bias": 0.01,
                        "dead_zone": 0.02 * (step + 1), "grid_noise": 0.03,
                        "oscillating": 0.2 if kind == "fprop weight" else np.nan,
                        "loss_gap": (place + 1) * 1e-3 if kind == "fprop" else np.nan,
                    }
                )  # fmt: skip
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_rows_become_medians_by_product_and_layer() -> None:
    found = {(one.kind, one.layer): one for one in product_errors(meter_rows())}
    assert set(found) == {
        (kind, layer)
        for kind in ("fprop", "wgrad", "wgrad gradient", "fprop weight")
        for layer in ("a", "b", "(global)")
    }
    one = found["fprop", "b"]
    assert (one.q, one.loss_gap, one.oscillating) == (0.91, 0.002, None)
    assert one.error == pytest.approx(0.01 + 0.02 * 51 + 0.03)
    assert found["fprop weight", "a"].oscillating == 0.2
    assert product_errors({"kind": np.array(["gradients"])}) == []  # a run of an earlier version


def test_early_steps_alone_predict() -> None:
    gap, error = early(meter_rows())
    assert gap == 0.003
    assert error == pytest.approx(np.median([0.04 + 0.02, 0.04 + 0.02 * 51]))
    assert early({}) == (None, None)


def test_curves_of_products_are_those_of_the_weights_gradient() -> None:
    curves = shrinkage_curves(meter_rows())
    assert curves is not None
    assert [layer.name for layer in curves.layers] == ["a", "b"]
    assert curves.q_median == 0.92
    assert curves.dead_median == 0.5


def test_predictions_are_ranked_against_what_was_measured() -> None:
    study = with_products()
    found = predictions(study)
    assert [one.label for one in found] == ["mxfp8", "nvfp4", "mxfp4", "fp8-tensor"]
    assert agreement(found, lambda one: one.gap) == 1.0
    assert agreement(found, lambda one: one.error) == pytest.approx(-1.0)
    assert found[0].measured is not None
    assert found[0].measured.mean == pytest.approx(0.1)
    assert parts_of(study.of("nvfp4"))["fprop"] == (0.98, 0.001, 0.002, 0.003)
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None
    assert rank_correlation([1, 2, 2, 4], [1, 2, 3, 4]) == pytest.approx(0.948683)


def test_recipes_stand_among_formats_and_take_no_rounding_of_their_own() -> None:
    study = FormatStudy(("nvfp4", "e4m3"), rounding=("nearest", "stochastic"), scaling=("none", "mx"))
    made = format_variants(Recipe(), study, [0])
    assert [one.label for one in made] == [
        "full", "nvfp4", "e4m3", "e4m3, mx", "e4m3, stochastic", "e4m3, stochastic, mx",
    ]  # fmt: skip
    assert made[1].recipe.precision.matmul == "nvfp4"
    assert made[1].recipe.precision.gradients is None
    assert made[2].recipe.precision.matmul is None
    assert study.of_tensors == ("e4m3",)
    with pytest.raises(ValueError, match=r"unknown number format 'nvfp5'.* As a recipe: .*did you mean nvfp4"):
        FormatStudy(("nvfp5",))
    with pytest.raises(ValueError, match="names a number format itself"):
        format_variants(Recipe(precision={"matmul": "nvfp4"}), study, [0])

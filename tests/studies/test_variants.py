"""Variants: which settings apply to which method, labels, folder names, refusals."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.files import alone
from trimtab.runs.recipe import Recipe
from trimtab.studies.comparison import compare
from trimtab.studies.variants import run_label, variants


def test_a_varied_field_applies_to_the_methods_that_read_it() -> None:
    found = variants(Recipe(), ["sgd", "var", "var+sam", "sam"], [0, 1], {"var.strength": [1e-6, 1e-5]})
    labels = [variant.label for variant in found if variant.recipe.seed == 0]
    assert labels == [
        "sgd",
        "var[var.strength=1e-06]",
        "var[var.strength=1e-05]",
        "var+sam[var.strength=1e-06]",
        "var+sam[var.strength=1e-05]",
        "sam",
    ]
    assert [variant.recipe.seed for variant in found] == [0] * 6 + [1] * 6
    assert found[2].recipe.var.strength == 1e-5
    assert len({variant.folder for variant in found}) == len(found)
    assert all(not set(variant.folder) & set('[]<>:"|?* ') for variant in found)


def test_fields_of_the_whole_recipe_apply_to_all() -> None:
    assert len(variants(Recipe(), ["sgd", "adamw"], [0], {"epochs": [1, 2]})) == 4
    assert [v.label for v in variants(Recipe(), ["sgd", "adamw"], [0], {"sgd.lr": [0.1, 0.2]})][-1] == "adamw"


@pytest.mark.parametrize(
    ("methods", "seeds", "vary", "message"),
    [
        ([], [0], {}, "methods is empty"),
        (["sgd"], [], {}, "seeds is empty"),
        (["sgd", "sgd"], [0], {}, "twice"),
        (["sdg"], [0], {}, "did you mean sgd"),
        (["sgd"], [0], {"var.strength": [1]}, "none of the methods"),
        (["sgd"], [0], {"epoch": [1]}, "epochs"),
    ],
)
def test_refusals(methods: list[str], seeds: list[int], vary: dict[str, list[object]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        variants(Recipe(), methods, seeds, vary)


def test_transforms_multiply_all_methods_and_their_settings_only_theirs() -> None:
    vary = {"transforms": ["none", "autoscale", "centralize+adaptive_clip"], "autoscale.scale": ["first", "ema"]}
    found = variants(Recipe(), ["sgd"], [0], vary)
    assert [v.label for v in found] == [
        "sgd[transforms=none]",
        "sgd[transforms=autoscale,autoscale.scale=first]",
        "sgd[transforms=autoscale,autoscale.scale=ema]",
        "sgd[transforms=centralize+adaptive_clip]",
    ]
    assert [v.recipe.transforms for v in found] == [
        (),
        ("autoscale",),
        ("autoscale",),
        ("centralize", "adaptive_clip"),
    ]
    assert len({v.folder for v in found}) == 4
    with pytest.raises(ValueError, match="none of the methods"):
        variants(Recipe(), ["sgd"], [0], {"autoscale.scale": ["first"]})


def test_fixed_transforms_stand_in_every_label() -> None:
    recipe = Recipe(transforms=("centralize", "autoscale"))
    assert run_label(recipe) == "sgd[transforms=centralize+autoscale]"
    assert run_label(Recipe(method="var")) == "var"
    found = variants(recipe, ["sgd", "var"], [0], {"autoscale.scale": ["ema"]})
    assert [v.label for v in found] == [
        f"{method}[transforms=centralize+autoscale,autoscale.scale=ema]" for method in ("sgd", "var")
    ]


def test_a_study_that_another_process_runs_is_refused_by_name(tmp_path: Path) -> None:
    study = tmp_path / "study"
    with alone(study, "x"), pytest.raises(ValueError, match=r"another process is running the study in .*study; wait"):
        compare(variants(Recipe(), ["sgd"], [0]), study)
    assert [path.name for path in study.iterdir()] == [".lock"]

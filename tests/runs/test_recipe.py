"""Recipes: round trip, overrides, refusals that name the nearest field."""

from __future__ import annotations

from pathlib import Path

import pytest

from trimtab.runs.methods import METHODS, TRANSFORMS
from trimtab.runs.recipe import Recipe, load_recipe, shipped_recipes
from trimtab.runs.run_folder import training_identity


@pytest.mark.parametrize("name", sorted(shipped_recipes()))
def test_every_shipped_recipe_loads_and_round_trips(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    recipe.write(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert load_recipe(tmp_path) == recipe


def test_unknown_field_is_refused_with_the_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("var: {strenght: 1.0e-4}\n")
    with pytest.raises(ValueError, match=r"unknown field 'var.strenght'.*var.strength"):
        load_recipe(file)
    file.write_text("epoch: 3\n")
    with pytest.raises(ValueError, match=r"'epoch'.*epochs"):
        load_recipe(file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 0", "epochs"),
        ("pruning: {sparsities: [1.0]}", "less than 1"),
        ("method: vat", "did you mean var"),
        ("data: {validation: 0}", "greater than 0"),
        ("- 1", "mapping"),
        ("a: [", "YAML"),
    ],
)
def test_bad_values_name_the_field(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(file)


def test_unknown_recipe_offers_the_nearest() -> None:
    with pytest.raises(ValueError, match="cifar10-resnet20"):
        load_recipe("cifar10-resnet-20")
    with pytest.raises(ValueError, match="no recipe file"):
        load_recipe("nowhere.yaml")


def test_with_settings_checks_field_and_value() -> None:
    recipe = Recipe().with_settings({"var.strength": 1e-4, "epochs": 3, "model.arguments.depth": 2})
    assert (recipe.var.strength, recipe.epochs, recipe.model.arguments) == (1e-4, 3, {"depth": 2})
    with pytest.raises(ValueError, match=r"var\.strength"):
        Recipe().with_settings({"var.strengh": 1.0})
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Recipe().with_settings({"var.strength": -1.0})


def test_methods_named_in_the_issue_exist() -> None:
    wanted = {"sgd", "adamw", "var", "l1", "hoyer", "sam", "asam", "cram", "cram+", "var+sam", "var+cram+"}
    assert wanted <= METHODS.keys()


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("none", ()),
        ((), ()),
        ("centralize+adaptive_clip", ("centralize", "adaptive_clip")),
        (["zscore,autoscale"], ("zscore", "autoscale")),
        (["autoscale", "centralize"], ("autoscale", "centralize")),
    ],
)
def test_transforms_as_a_list_and_as_one_word(given: object, read: tuple[str, ...], tmp_path: Path) -> None:
    recipe = Recipe().with_settings({"transforms": given})
    assert recipe.transforms == read
    recipe.write(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path) == recipe


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("transforms", "zscor", "unknown gradient transform 'zscor'; allowed are autoscale, zscore, centralize"),
        ("transforms", "none+zscore", "unknown gradient transform 'none'"),
        ("transforms", "zscore+zscore", "occurs twice"),
        ("transforms", 3, "transforms"),
        ("track", ["gradient"], "unknown tracked quantity 'gradient'; allowed are gradients, weights, updates"),
        ("track_every", 0, "track_every"),
        ("autoscale.scale", "max", "running_max"),
        ("adaptive_clip.clip", 0, "greater than 0"),
    ],
)
def test_bad_transforms_and_tracking_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe().with_settings({field: value})


def test_names_of_the_transforms_are_those_of_the_library() -> None:
    from trimtab import gradients

    assert {*TRANSFORMS, "clip_norm"} == set(gradients.names())
    for name in TRANSFORMS:  # every section's defaults are the transform's own
        section = getattr(Recipe(), name).model_dump()
        assert repr(gradients.create(name, **section)) == repr(gradients.create(name))


def test_identity_drops_what_nobody_reads_and_what_is_only_watched() -> None:
    plain = training_identity(Recipe())
    assert plain == training_identity(Recipe(track=("gradients",), track_every=3, autoscale={"scale": "ema"}))
    assert "autoscale" not in plain
    scaled = Recipe(transforms=("autoscale",))
    assert training_identity(scaled) != plain
    assert training_identity(scaled) != training_identity(scaled.with_settings({"autoscale.scale": "ema"}))
    swapped = Recipe(transforms=("zscore", "centralize"))
    assert training_identity(swapped) != training_identity(Recipe(transforms=("centralize", "zscore")))

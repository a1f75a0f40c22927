"""Recipes: round trip, overrides, refusals that name the nearest field."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from trimtab.registry import create, find, of_home
from trimtab.runs.recipe import SECTIONS, Recipe, load_recipe
from trimtab.runs.run_folder import training_identity
from trimtab.runs.shipped import shipped_recipes
from trimtab.studies.variants import variants


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
    with pytest.raises(ValueError, match=r"var\.strength must be finite and 0 or more, got -1"):
        Recipe().with_settings({"method": "var", "var.strength": -1.0})


@pytest.mark.parametrize(
    ("method", "used"),
    [
        ("sgd", ("sgd",)),
        ("adamw", ("adamw",)),
        ("var+cram+", ("sgd", "var", "cram+")),
        ("cram++var", ("sgd", "cram+", "var")),
        ("cram+var", ("sgd", "cram", "var")),
        ("l1+cram+", ("sgd", "l1", "cram+")),
        ("adamw+hoyer+sam+centralize", ("adamw", "hoyer", "sam", "centralize")),
    ],
)
def test_any_combination_is_a_method_and_a_list_of_levers(method: str, used: tuple[str, ...], tmp_path: Path) -> None:
    recipe = Recipe(method=method)
    assert recipe.used == used
    again = Recipe(levers=recipe.levers)
    assert again.used == used
    assert training_identity(again) == training_identity(recipe)
    recipe.write(tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path) == recipe


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "method: sam+cram+",
            r"read as \['sam', 'cram\+'\]: sam and cram\+ cannot act together, each takes the whole step",
        ),
        ("method: sgd+adamw", "sgd and adamw cannot act together, one takes the step"),
        ("method: l1+l1", "'l1' occurs twice; give the second a suffix and a section, such as l1@head"),
        ("method: l1@Head", "suffix of 'l1@Head' must be of a-z, 0-9 and _"),
        ("method: l1++", r"a \+ without a name before it"),
        ("{method: var, levers: [l1]}", "method 'var' and levers .*both given and differ"),
        (
            "levers: [low_precision]",
            "'low_precision' does not act among the levers of a run but by the section precision",
        ),
        ("levers: [one_shot]", "'one_shot' does not act among the levers of a run but in its own room"),
        ("method: clip_norm", "clip_norm.max_norm must be given"),
        ("{method: l1, 'l1@head': {strength: 1.0}}", "settings for 'l1@head', which is not among the levers"),
        ("{method: l1+l1@head, 'l1@head': {strenght: 1.0}}", "strenght"),
        ("{method: centralize, transforms: [centralize]}", "name it once"),
        ("{method: var, var: {form: none}}", "var.form"),
        ("{method: cram+, cram: {sparsities: [1.5]}}", r"cram.*sparsities\[0\]"),
        ("optimizer: sam", "unknown optimizer 'sam'"),
    ],
)
def test_what_cannot_act_together_is_refused_with_the_reason(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(file)


def test_the_same_lever_twice_has_two_sections(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("levers: [l1, l1@head]\nl1: 1.0e-4\nl1@head: {strength: 1.0e-2, include: 'head*'}\n")
    recipe = load_recipe(file)
    assert [recipe.build(name).strength for name in recipe.levers] == [1e-4, 1e-2]
    assert recipe.build("l1@head").rule.include == ("head*",)
    changed = recipe.with_settings({"l1@head.strength": 0.5})
    assert (changed.build("l1@head").strength, changed.build("l1").strength) == (0.5, 1e-4)
    assert training_identity(changed) != training_identity(recipe)
    changed.write(file)
    assert "l1@head:" in file.read_text()
    assert load_recipe(file) == changed


def test_another_method_leaves_sections_with_a_suffix_behind() -> None:
    recipe = Recipe.model_validate({"method": "l1+l1@head", "l1@head": {"strength": 1e-2, "include": "head*"}})
    made = {one.label: one.recipe for one in variants(recipe, ["sgd", "l1+l1@head", "cram+"], [0])}
    assert [made[label].used for label in made] == [("sgd",), ("sgd", "l1", "l1@head"), ("sgd", "cram+")]
    assert made["l1+l1@head"].build("l1@head").strength == 1e-2
    assert made["sgd"].suffixed == {}
    varied = variants(recipe, ["sgd", "l1+l1@head"], [0], {"l1@head.strength": [0.5, 2.0]})
    assert [one.label for one in varied] == ["sgd", *(f"l1+l1@head[l1@head.strength={value}]" for value in (0.5, 2.0))]
    assert varied[-1].recipe.build("l1@head").strength == 2.0
    with pytest.raises(ValueError, match="settings for 'l1@head', which is not among the levers"):
        recipe.with_settings({"method": "sgd", "l1@head.strength": 1.0})


def test_a_bare_value_stands_for_the_first_setting_of_a_lever(tmp_path: Path) -> None:
    short, long = Recipe(clip_norm=0.5), Recipe(clip_norm={"max_norm": 0.5})
    assert short == long
    assert short.used == ("sgd", "clip_norm")
    assert Recipe(clip_norm=None) == Recipe()
    assert Recipe(levers=("clip_norm", "l1"), clip_norm=0.5).used == ("sgd", "clip_norm", "l1")


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
    ],
)
def test_bad_transforms_and_tracking_are_refused(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe().with_settings({field: value})


def test_every_section_has_the_defaults_of_its_lever() -> None:
    for name in of_home("transform", "penalty"):
        section = SECTIONS[name]().model_dump(exclude={"include", "exclude"})
        handed = {"total_steps": 100} if "total_steps" in inspect.signature(find(name).load()).parameters else {}
        if None not in section.values():
            assert repr(create(name, **section, **handed)) == repr(create(name, **handed))


def test_identity_drops_what_nobody_reads_and_what_is_only_watched() -> None:
    plain = training_identity(Recipe())
    assert plain == training_identity(Recipe(track=("gradients",), track_every=3, autoscale={"scale": "ema"}))
    assert not {"autoscale", "adamw"} & plain.keys()
    assert plain["levers"] == ["sgd"]
    scaled = Recipe(transforms=("autoscale",))
    assert training_identity(scaled) != plain
    assert training_identity(scaled) != training_identity(scaled.with_settings({"autoscale.scale": "ema"}))
    more = {"pruning.recalibrate_batches": 30}
    assert plain == training_identity(Recipe().with_settings(more))  # only looked at afterwards
    for lever in ("gradual", "mean_weights", "safe"):  # estimates statistics anew at the end of training
        assert training_identity(Recipe(levers=("sgd", lever))) != training_identity(
            Recipe(levers=("sgd", lever)).with_settings(more)
        )
    swapped = Recipe(transforms=("zscore", "centralize"))
    assert training_identity(swapped) != training_identity(Recipe(transforms=("centralize", "zscore")))

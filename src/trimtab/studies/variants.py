"""The runs of a study: methods x settings x seeds, each with a label and a folder name."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.registry import settings_name
from trimtab.runs.recipe import SECTIONS, Recipe
from trimtab.runs.run_folder import RunFolder, marked


def safe_name(label: str) -> str:
    """The label without characters that a file system minds."""
    return "".join(letter if letter.isalnum() or letter in "+-=.," else "_" for letter in label)


@dataclass(frozen=True)
class Variant:
    """One run of a study.

    Attributes:
        label: its name in tables and figures.
        recipe: what is run.
        varied: dotted names of the recipe's fields that the study gives several values.
        family: among which runs the best is chosen (`tune`); default the method.
    """

    label: str
    recipe: Recipe
    varied: tuple[str, ...] = ()
    family: str = ""

    @property
    def folder(self) -> str:
        """Folder name: label and seed."""
        return f"{safe_name(self.label)}/seed{self.recipe.seed}"


def run_label(recipe: Recipe) -> str:
    """The name of a run in tables and figures where nothing is varied: its method, and its gradient transforms.

    Example:
        >>> run_label(Recipe(method="var", transforms=("centralize", "autoscale")))
        'var[transforms=centralize+autoscale]'
    """
    return f"{recipe.method}[transforms={'+'.join(recipe.transforms)}]" if recipe.transforms else recipe.method


def default_run(recipe: Recipe) -> Path:
    """Where a run goes when nothing else is said: runs/NAME/LABEL/seedN, with a mark of the recipe where another lies there.

    So the same command goes on with its run, and another recipe never meets it.
    """
    path = Path("runs") / recipe.name / safe_name(run_label(recipe)) / f"seed{recipe.seed}"
    return marked(path, recipe) if RunFolder(path).differs(recipe) else path


def default_study(path: Path, recipe: Recipe, found: Sequence[Variant]) -> Path:
    """`path`, with a mark of the base recipe where a run of another one lies in the place of one of `found`."""
    taken = any(RunFolder(path / "runs" / variant.folder).differs(variant.recipe) for variant in found)
    return marked(path, recipe) if taken else path


def applies(field: str, recipe: Recipe) -> bool:
    """Whether a run of this recipe reads the field: those outside the levers' sections always."""
    section = field.split(".")[0]
    known = section in SECTIONS or "@" in section
    return not known or section in map(settings_name, recipe.used) or (section == field and section == "clip_norm")


def shown(value: Any) -> str:
    """A value in a label."""
    return "+".join(map(str, value)) or "none" if isinstance(value, tuple | list) else str(value)


def variants(
    recipe: Recipe, methods: Sequence[str], seeds: Sequence[int], vary: Mapping[str, Sequence[Any]] | None = None
) -> list[Variant]:
    """Every combination, seeds innermost last: all methods of the first seed come before the second seed.

    A varied field applies to the runs that read it: `var.strength` multiplies `var` and `var+sam`, not `sgd`, and
    `autoscale.scale` those with the transform autoscale.

    Raises:
        ValueError: an unknown method or field, an empty list, or a field that no method reads.

    Example:
        >>> [v.label for v in variants(Recipe(), ["sgd", "var"], [0], {"var.strength": [1e-5, 1e-4]})]
        ['sgd', 'var[var.strength=1e-05]', 'var[var.strength=0.0001]']
    """
    vary = vary or {}
    for what, values in (("methods", methods), ("seeds", seeds), *vary.items()):
        if not values:
            raise ValueError(f"{what} is empty: nothing to run")
        if len(set(map(str, values))) != len(values):
            raise ValueError(f"{what} holds a value twice: {list(values)}")
    used = [
        recipe.with_settings({"method": method, "transforms": value})
        for method in methods
        for value in vary.get("transforms", (recipe.transforms,))
    ]
    for field in vary:
        if field in {"seed", "method", "levers", "name"}:
            raise ValueError(
                f"--vary {field}: use --{field}s" if field != "name" else "--vary name: a name decides nothing"
            )
        if not any(applies(field, one) for one in used):
            raise ValueError(f"--vary {field}: none of the methods {', '.join(methods)} reads it")
    found: dict[tuple[str, int], Variant] = {}
    for seed in seeds:
        for method in methods:
            for values in itertools.product(*vary.values()):
                given = dict(zip(vary, values, strict=True))
                chosen = recipe.with_settings(
                    {"method": method, "transforms": given.get("transforms", recipe.transforms)}
                )
                settings = {field: value for field, value in given.items() if applies(field, chosen)}
                named = {} if "transforms" in given or not recipe.transforms else {"transforms": recipe.transforms}
                named_so = ",".join(f"{field}={shown(value)}" for field, value in {**named, **settings}.items())
                label = f"{method}[{named_so}]" if named_so else method
                if (label, seed) not in found:
                    made = recipe.with_settings({**settings, "method": method, "seed": seed})
                    found[label, seed] = Variant(label, made, tuple(settings))
    return list(found.values())

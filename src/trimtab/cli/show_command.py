"""`trimtab show`: one lever or one recipe, whole."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from trimtab.checks import hint
from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.registry import HOMES, LEVERS, TRAINED, Entry, find
from trimtab.runs.commented import commented
from trimtab.runs.recipe import load_recipe
from trimtab.runs.section import explained, settings_of
from trimtab.runs.shipped import shipped_recipes


@dataclass(frozen=True)
class ShowArguments:
    """One lever whole: what it does, its formula, its settings with their defaults, its source and card. Or one recipe:
    every field with its value and a sentence, as `trimtab new` would write it.

    Examples:
        trimtab show cram+
        trimtab show cifar10-resnet20
        trimtab show autoscale --json
    """

    name: tyro.conf.Positional[str]
    """A lever (trimtab list levers), or a recipe: a shipped name (trimtab list recipes), a YAML file, or a run folder."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def described(row: Entry) -> dict[str, Any]:
    """What is printed, as one document."""
    docstring = inspect.getdoc(row.load()) or ""
    formula = docstring.partition("\nArgs:")[0].partition("\nReturns:")[0].strip()
    return {
        "name": row.name,
        "home": row.home,
        "line": row.line,
        "source": row.source,
        "path": row.path,
        "card": f"docs/{row.card_file}",
        "fixed": dict(row.fixed),
        "formula": formula,
        "settings": {
            item.name: {"default": "required" if item.required else item.default, "says": item.text}
            for item in settings_of(row)
        },
        "arguments": explained(docstring),
        "named_in_recipes": row.home in TRAINED,
    }


def _is_recipe(name: str) -> bool:
    """Whether a recipe is meant; a name that is neither is told the nearest of both."""
    if name.partition("@")[0] in LEVERS:
        return False
    if name in shipped_recipes() or Path(name).exists() or Path(name).suffix in {".yaml", ".yml"}:
        return True
    both = [*LEVERS, *shipped_recipes()]
    raise ValueError(f"no lever or recipe {name!r}; {hint(name, both, 'levers and recipes')}")


def _show_recipe(given: ShowArguments) -> int:
    recipe = load_recipe(given.name)
    if given.output.json:
        print_json(recipe.model_dump(mode="json"))
        return 0
    says = shipped_recipes().get(given.name)
    if says:
        console.print(f"[bold]{given.name}[/]: {escape(says)}\n", highlight=False, soft_wrap=True)
    console.print(commented(recipe), markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"run it: trimtab train {given.name}   change it: trimtab new FILE.yaml {given.name}",
        soft_wrap=True,
        markup=False,
    )
    return 0


def run(arguments: Sequence[str]) -> int:
    """Parse and print."""
    given = parse(ShowArguments, arguments, "show")
    if _is_recipe(given.name):
        return _show_recipe(given)
    row = find(given.name)
    found = described(row)
    if given.output.json:
        print_json(found)
        return 0
    console.print(f"[bold]{row.name}[/]: {escape(row.line)}")
    console.print(f"home: {row.home}, {HOMES[row.home]}", highlight=False)
    console.print(
        f"source: {row.source}   in Python: {row.path.replace(':', '.')}   card: docs/{row.card_file}", soft_wrap=True
    )
    console.print(f"\n{escape(found['formula'])}\n", highlight=False)
    table = Table(title="settings", title_justify="left", box=None, padding=(0, 2, 0, 0), show_header=False)
    for name, item in found["settings"].items():
        table.add_row(name, escape(str(item["default"])), escape(item["says"]))
    for name, value in row.fixed.items():
        table.add_row(name, escape(str(value)), "fixed by the name")
    console.print(table)
    if row.home in TRAINED:
        console.print(
            f"in a run: trimtab train RECIPE --levers {row.name}   settings: --{row.section.replace('_', '-')}.NAME VALUE"
        )
    return 0

"""`trimtab list`: what can be named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro
from rich.table import Table

from trimtab import datasets, models
from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.runs.methods import METHODS
from trimtab.runs.recipe import shipped_recipes

Kind = Literal["methods", "models", "datasets", "recipes"]


@dataclass(frozen=True)
class ListArguments:
    """`trimtab list [methods|models|datasets|recipes]`: names and one line about each."""

    kind: tyro.conf.Positional[Literal["all", "methods", "models", "datasets", "recipes"]] = "all"
    """What to list."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def listing(kind: Kind) -> dict[str, str]:
    """Names of one kind with their descriptions."""
    match kind:
        case "methods":
            return {name: method.description for name, method in METHODS.items()}
        case "models":
            return models.names()
        case "datasets":
            return datasets.names()
    return shipped_recipes()


def run(arguments: Sequence[str]) -> int:
    """Parse and print."""
    given = parse(ListArguments, arguments, "list")
    kinds: list[Kind] = ["methods", "models", "datasets", "recipes"] if given.kind == "all" else [given.kind]
    if given.output.json:
        print_json({kind: listing(kind) for kind in kinds})
        return 0
    for kind in kinds:
        table = Table(title=kind, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for name, text in listing(kind).items():
            table.add_row(name, text)
        console.print(table)
    return 0

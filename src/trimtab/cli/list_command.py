"""`trimtab list`: what can be named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

import tyro
from rich.table import Table

from trimtab import datasets, models
from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.registry import HOMES, of_home
from trimtab.runs.shipped import shipped_recipes

Kind = Literal["levers", "models", "datasets", "recipes"]


@dataclass(frozen=True)
class ListArguments:
    """Names of levers, models, data sets and recipes, and one line about each.

    Examples:
        trimtab list
        trimtab list levers
        trimtab list recipes --json
    """

    kind: tyro.conf.Positional[Literal["all", "levers", "models", "datasets", "recipes"]] = "all"
    """What to list."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def listing(kind: Kind) -> dict[str, str]:
    """Names of one kind with their descriptions."""
    match kind:
        case "levers":
            return {name: f"{row.line} ({row.source})" for home in HOMES for name, row in of_home(home).items()}
        case "models":
            return models.names()
        case "datasets":
            return datasets.names()
    return shipped_recipes()


def _print(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
    for name, text in rows.items():
        table.add_row(name, text)
    console.print(table)


def run(arguments: Sequence[str]) -> int:
    """Parse and print."""
    given = parse(ListArguments, arguments, "list")
    kinds: tuple[Kind, ...] = get_args(Kind) if given.kind == "all" else (given.kind,)
    if given.output.json:
        print_json({kind: listing(kind) for kind in kinds})
        return 0
    for kind in kinds:
        if kind != "levers":
            _print(kind, listing(kind))
            continue
        for home, says in HOMES.items():
            if rows := {name: f"{row.line} ({row.source})" for name, row in of_home(home).items()}:
                _print(f"levers: {home} ({says})", rows)
    return 0

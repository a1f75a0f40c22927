"""`trimtab show`: one lever, whole."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro
from rich.markup import escape
from rich.table import Table

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.registry import HOMES, TRAINED, Entry, find
from trimtab.runs.section import explained, settings_of


@dataclass(frozen=True)
class ShowArguments:
    """One lever whole: what it does, its formula, its settings with their defaults, its source and card.

    Examples:
        trimtab show cram+
        trimtab show l1
        trimtab show autoscale --json
    """

    name: tyro.conf.Positional[str]
    """A lever (trimtab list levers)."""
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


def run(arguments: Sequence[str]) -> int:
    """Parse and print."""
    given = parse(ShowArguments, arguments, "show")
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

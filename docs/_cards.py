"""Fills the navigation's method cards and the table of levers from the registry when the documentation is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

# by its path and without torch, so that building the documentation needs no installed package
sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from trimtab import registry


def cards() -> list[dict[str, list[dict[str, str]]]]:
    """The navigation: homes, and below each its cards; a shared card once, at its first home, naming all it holds."""
    seen, found = set(), []
    for home in registry.HOMES:
        rows = []
        for row in registry.of_home(home).values():
            if row.card_file not in seen:
                seen.add(row.card_file)
                names = [other.name for other in registry.LEVERS.values() if other.card_file == row.card_file]
                rows.append({", ".join(names): row.card_file})
        if rows:
            found.append({home.replace("_", " "): rows})
    return found


def table() -> str:
    """Every lever in one line, by home."""
    lines: list[str] = []
    for home, says in registry.HOMES.items():
        rows = registry.of_home(home)
        if not rows:
            continue
        lines += [
            f"## {home.replace('_', ' ').capitalize()}",
            "",
            f"A lever here {says}.",
            "",
            "| name | what it does | source | in Python |",
        ]
        lines += ["| --- | --- | --- | --- |"]
        for row in rows.values():
            place = row.path.replace(":", ".")
            lines.append(
                f"| [`{row.name}`]({row.card_file}) | {row.line.replace('|', chr(92) + '|')} | {row.source} | `{place}` |"
            )
        lines.append("")
    return "\n".join(lines)


def _put(items: list[Any]) -> None:
    """Put the cards where the navigation leaves their place, at any depth."""
    for item in items:
        if isinstance(item, dict):
            if "Method cards" in item:
                item["Method cards"] = cards()
            for held in item.values():
                if isinstance(held, list):
                    _put(held)


def on_config(config: Any) -> Any:
    """Put the cards into the navigation."""
    _put(config["nav"])
    return config


def on_page_markdown(markdown: str, page: Any, **rest: Any) -> str:
    """Put the table into its page."""
    return markdown.replace("<!-- levers -->", table()) if page.file.src_uri == "levers.md" else markdown

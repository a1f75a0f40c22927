"""The recipes inside the package."""

from __future__ import annotations

from importlib import resources


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes inside the package, each with its first comment line."""
    folder = resources.files("trimtab.runs") / "recipes"
    found = {}
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.name.endswith(".yaml"):
            first = item.read_text(encoding="utf-8").splitlines()[0]
            found[item.name.removesuffix(".yaml")] = first.removeprefix("#").strip()
    return found

"""A recipe as a file that says what its fields mean."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml
from pydantic import BaseModel

from trimtab.registry import settings_name
from trimtab.runs.recipe import SECTIONS, Recipe

WIDTH = 120
PLAIN = ("data", "model", "schedule", "pruning")
"""Sections that every file shows whole; others stand there where the recipe uses or changes them."""


def commented(recipe: Recipe) -> str:
    """YAML text that `load_recipe` reads back to an equal recipe, each field with its sentence.

    The sections of levers that the recipe neither uses nor changes are left out.

    Example:
        >>> print("".join(commented(Recipe()).splitlines(keepends=True)[:4]), end="")
        # Name of the study.
        name: digits
        # The levers in short: joined by +, such as var, l1+cram+ or adamw (`trimtab list levers`); default the optimizer.
        method: sgd
    """
    data = recipe.model_dump(mode="json")
    default = Recipe(method=recipe.method).model_dump(mode="json")
    used = {settings_name(name).partition("@")[0] for name in recipe.used}
    lines: list[str] = []
    for name, info in Recipe.model_fields.items():
        value, kind = data[name], info.annotation
        if name in {"levers", "suffixed"} or (name in SECTIONS and name not in used and value == default[name]):
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            if name in PLAIN or name in used or value != default[name]:
                lines += ["", *_comment(kind.__doc__ or ""), f"{name}:", *_fields(kind, value)]
            continue
        lines += [*_comment(info.description or ""), *_entry(name, value)]
    for name, section in data["suffixed"].items():
        lines += ["", *_entry(name, section)]
    return "\n".join(lines) + "\n"


def _fields(kind: type[BaseModel], values: dict[str, Any]) -> list[str]:
    lines = []
    for name, info in kind.model_fields.items():
        lines += [*_comment(info.description or ""), *_entry(name, values[name])]
    return [f"  {line}" for line in lines]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), WIDTH - 4)]


def _entry(name: str, value: Any) -> list[str]:
    """One field in one line."""
    text: str = yaml.safe_dump([value], default_flow_style=True, sort_keys=False, width=10**6)
    return [f"{name}: {text.strip()[1:-1]}"]

"""Packages whose names are imported when they are first used, so that lists and help are there before torch is."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package.

    Args:
        package: its `__name__`.
        homes: each public name with the module that defines it; a name that is its own home is that module.

    Example:
        >>> find, names = lazily("trimtab", {"named": "inputs", "inputs": "inputs"})
        >>> find("named").__module__, find("inputs").__name__, names()
        ('trimtab.inputs', 'trimtab.inputs', ['inputs', 'named'])
    """

    def find(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{homes[name]}")
        return module if name == homes[name] else getattr(module, name)

    return find, lambda: sorted(homes)


def at(path: str) -> Any:
    """What `module:name` names, imported now.

    Example:
        >>> at("math:sqrt")(4.0)
        2.0
    """
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)

"""Arguments that several commands share; nothing here imports torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


@dataclass(frozen=True)
class Output:
    """How much is printed."""

    quiet: bool = False
    """No progress bars."""
    json: bool = False
    """Print one JSON document instead of text (implies --quiet)."""

    @property
    def silent(self) -> bool:
        """Whether progress is hidden."""
        return self.quiet or self.json


def parse(command: Callable[..., T], arguments: Sequence[str], name: str, default: T | None = None) -> T:
    """Parse by the dataclass's fields and docstring; usage errors exit with code 2."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    given: T = tyro.cli(command, args=list(arguments), prog=f"trimtab {name}", **options)
    return given


def check_first(given: object, expected: object, what: str, command: str) -> None:
    """Refuse a command line whose first word was not the recipe or run, since the options' defaults come from it."""
    if str(given) != str(expected):
        raise ValueError(f"{what} comes first: trimtab {command} {given} [options]")

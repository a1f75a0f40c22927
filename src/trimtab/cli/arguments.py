"""Arguments that several commands share, and how a recipe's fields become flags."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import tyro
import yaml
from pydantic import ValidationError

from trimtab.inputs import named, shortened
from trimtab.runs.recipe import Recipe, load_recipe, problems

T = TypeVar("T")

Fields = Annotated[Recipe, tyro.conf.arg(name="")]


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


def parse(command: type[T], arguments: Sequence[str], name: str, default: T | None = None) -> T:
    """Parse by the dataclass's fields and docstring; usage errors exit with code 2."""
    options: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            given: T = tyro.cli(command, args=list(arguments), prog=f"trimtab {name}", **options)
            return given
    except ValidationError as error:
        raise ValueError(problems(error)) from None
    except SystemExit as stop:
        if (found := _refused_section(stop)) is not None:
            raise ValueError(problems(*found)) from None
        print(said.getvalue(), end="", file=sys.stderr)
        raise


def _refused_section(stop: SystemExit) -> tuple[ValidationError, str] | None:
    """The recipe's section whose values made tyro stop, and what it holds against them; None for another usage error."""
    cause, section = stop.__context__, ""
    while cause is not None and not isinstance(cause, ValidationError):
        if isinstance(place := getattr(cause, "arg", None), str):
            section = place.removeprefix("fields").removeprefix(".")
        cause = cause.__context__
    return None if cause is None else (cause, section)


def check_first(given: object, expected: object, what: str, command: str) -> None:
    """Refuse a command line whose first word was not the recipe or run, since the options' defaults come from it."""
    if str(given) != str(expected):
        raise ValueError(f"{what} comes first: trimtab {command} {given} [options]")


def split_recipe(arguments: Sequence[str]) -> tuple[str, Recipe]:
    """The recipe named first on the command line (default digits), loaded, so that its values are the flags' defaults."""
    name = arguments[0] if arguments and not arguments[0].startswith("-") else "digits"
    return name, load_recipe(name)


def parse_vary(items: Sequence[str]) -> dict[str, list[Any]]:
    """`field=value,value` items as lists of YAML values.

    Example:
        >>> parse_vary(["var.strength=1e-5,1e-4", "var.form=variance,relative"])
        {'var.strength': [1e-05, 0.0001], 'var.form': ['variance', 'relative']}
    """
    found: dict[str, list[Any]] = {}
    for item in items:
        field, equals, values = item.partition("=")
        if not equals or not field or not values:
            raise ValueError(f"--vary takes FIELD=VALUE,VALUE such as var.strength=1e-6,1e-5, got {item!r}")
        with named(f"--vary {shortened(item, 80)}", "is not readable as YAML"):
            found[field] = [_number_or_text(value) for value in values.split(",")]
    return found


def _number_or_text(text: str) -> Any:
    try:  # YAML 1.1 reads 1e-5 as a string
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        return yaml.safe_load(text)

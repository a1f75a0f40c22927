"""Arguments that several commands share; nothing here imports torch."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from typing import Any, TypeVar

import tyro

from trimtab.checks import hint
from trimtab.cli import help as help_text
from trimtab.cli.console import console
from trimtab.cli.flags import Flag, check_words, flags_of

T = TypeVar("T")


class MisuseError(ValueError):
    """A command line that cannot be read; the message says it in one line, `command` which one it is."""

    def __init__(self, message: str, command: str = "") -> None:
        super().__init__(message)
        self.command = command


@dataclass(frozen=True)
class Output:
    """How much is printed."""

    quiet: bool = False
    """Say nothing but errors."""
    json: bool = False
    """Print one JSON document and nothing else."""

    @property
    def silent(self) -> bool:
        """Whether progress is hidden."""
        return self.quiet or self.json


def parse(command: Callable[..., T], arguments: Sequence[str], name: str, default: T | None = None) -> T:
    """Parse by the dataclass's fields and docstring; `--help` and `--help-all` print and exit with code 0.

    Raises:
        MisuseError: an unknown option, or a value that is none of its type.
    """
    assert isinstance(command, type)
    flags = flags_of(command, default)
    for word in arguments:
        if word in {"-h", "--help"}:
            print(help_text.short(command, flags, name), end="")
            raise SystemExit(0)
        if word in {"-H", "--help-all"}:
            print(help_text.whole(command, flags, name), end="")
            raise SystemExit(0)
    check_words(arguments, flags, name)
    options: dict[str, Any] = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            given: T = tyro.cli(command, args=list(arguments), prog=f"trimtab {name}", **options)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise MisuseError(in_one_line(said.getvalue(), flags), name) from stop
    output = getattr(given, "output", None)
    console.quiet = isinstance(output, Output) and output.quiet
    return given


def in_one_line(box: str, flags: Sequence[Flag]) -> str:
    """What a box of the parser says, in one line and in our words."""
    rows = [row.strip("│╭╮╰╯|+ ").strip() for row in box.splitlines()]
    end = next((at for at, row in enumerate(rows) if at > 1 and row and not row.strip("─-")), len(rows))
    text = " ".join(row for row in rows[1:end] if row.strip("─-")) or " ".join(filter(None, rows))
    if found := re.match(r"Error parsing (--\S+): invalid literal for int\(\) with base 10: (.*)", text):
        return f"{found[1]} takes a whole number, got {found[2]}"
    if found := re.match(r"Error parsing (--\S+): could not convert string to float: (.*)", text):
        return f"{found[1]} takes a number, got {found[2]}"
    if found := re.match(r"invalid choice '(.*)' for argument '(.*?)'\. Expected one of \((.*?),?\)\.?", text):
        allowed = re.findall(r"'(.*?)'", found[3])
        name = next((flag.name for flag in flags if flag.positional and flag.name == found[2].upper()), found[2])
        near = hint(found[1], allowed, "")
        more = f"; {near}" if near.startswith("did") else ""
        return f"{name} must be one of {', '.join(allowed)}, got {found[1]!r}{more}"
    if text.startswith(("Missing", "Required")):
        needed = [flag.name for flag in flags if flag.required]
        return f"{', '.join(needed)} must be given"
    return text


def check_first(given: object, expected: object, what: str, command: str) -> None:
    """Refuse a command line whose first word was not the recipe or run, since the options' defaults come from it."""
    if str(given) != str(expected):
        raise ValueError(f"{what} comes first: trimtab {command} {given} [options]")

"""The page of every command and flag, from what the commands' own help is made of."""

from __future__ import annotations

import importlib
import io
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

HEAD = """# Every command and flag

Made from the parsers when this page was built; `trimtab COMMAND --help-all` says the same. [Command line](../command-line.md)
tells how they are used together. A command that takes a recipe takes every field of it as a flag too; those stand once, under
[train](#train).
"""


def asked(*words: str) -> tuple[type, Sequence[Any]] | None:
    """The arguments' class and the flags that `--help-all` would print; None where a command has a help of its own."""
    from trimtab.cli import help as help_text
    from trimtab.cli import main

    found: list[tuple[type, Sequence[Any]]] = []

    def caught(kind: type, flags: Sequence[Any], command: str) -> str:
        found.append((kind, flags))
        return ""

    printed, help_text.whole = help_text.whole, caught
    try:
        with redirect_stdout(io.StringIO()):
            main([*words, "--help-all"])
    except SystemExit:
        pass
    finally:
        help_text.whole = printed
    return found[0] if found else None


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")


def _row(flag: Any) -> str:
    name = " ".join(filter(None, [", ".join([flag.name, *flag.others]), flag.value]))
    default = f"`{_cell(flag.default)}`" if flag.default else "required" if flag.required else ""
    return f"| `{_cell(name)}` | {_cell(flag.text)} | {default} |"


def section(*words: str, fields: bool, level: int = 2) -> list[str]:
    """One command: what it does, its examples, a table of its flags for each part; a recipe's fields only if asked."""
    lines = ["#" * level + f" {' '.join(words)}", ""]
    if (got := asked(*words)) is None:
        return lines
    return lines + _described(*got, fields=fields)


def _described(kind: type, flags: Sequence[Any], *, fields: bool) -> list[str]:
    """What a command says of itself, its examples, and its flags in tables."""
    from trimtab.cli.help import told

    says, examples = told(kind)
    lines = [says, "", *(["```sh", *examples, "```", ""] if examples else [])]
    parts: dict[str, list[Any]] = {}
    for flag in flags:
        if fields or not flag.recipe:
            title = flag.part.split("\n")[0].rstrip(".") or ("fields of the recipe" if flag.recipe else "options")
            parts.setdefault(title, []).append(flag)
    for title, held in parts.items():
        lines += [f"| {_cell(title)} | what it is | default |", "| --- | --- | --- |", *map(_row, held), ""]
    return lines


def page() -> str:
    """The whole page."""
    cli, medclm = (importlib.import_module(name) for name in ("trimtab.cli", "trimtab.cli.medclm"))
    lines = [HEAD]
    for name, says in cli.COMMANDS.items():
        if name == "medclm":
            lines += ["## medclm", "", says[0].upper() + says[1:] + ".", ""]
            for part in medclm.COMMANDS:
                lines += section("medclm", part, fields=False, level=3)
        else:
            lines += section(name, fields=name == "train")
        if name == "prune":  # what it takes follows from the folder that it is given
            flags, language = (importlib.import_module(f"trimtab.cli.{one}") for one in ("flags", "language_pruning"))
            kind = language.LanguagePruneArguments
            lines += ["### prune MODEL", "", *_described(kind, flags.flags_of(kind), fields=False)]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page())

"""What `--help` and `--help-all` print: one screen with examples, and every option in plain words."""

from __future__ import annotations

import inspect
import re
import shutil
import textwrap
from collections.abc import Sequence
from dataclasses import replace

from trimtab.cli.flags import Flag

LINES = 25
WIDTH = 80
COMMON = ("--method", "--epochs", "--data.root")
"""Fields of a recipe that the short help shows [ours]."""


def told(kind: type) -> tuple[str, list[str]]:
    """What the docstring of a command's dataclass says: one sentence or two, and the examples."""
    text, _, examples = (inspect.getdoc(kind) or "").partition("Examples:\n")
    return " ".join(text.split()), [line.strip() for line in examples.splitlines() if line.strip()]


def usage(kind: type, flags: Sequence[Flag], command: str) -> str:
    """The first line; a command that takes its words in another way names them in `WORDS` (and in `HELP` where its help is)."""
    arguments = [flag.name if flag.required else f"[{flag.name}]" for flag in flags if flag.positional]
    if any(flag.recipe for flag in flags):
        arguments = [word.strip("[]") for word in arguments]
    arguments = getattr(kind, "WORDS", arguments)
    needed = [f"{flag.name} {flag.value}" for flag in flags if flag.required and not flag.positional]
    return " ".join(["usage: trimtab", command, *arguments, *needed, "[options]"])


def _head(flag: Flag) -> str:
    return ", ".join(
        [name for name in flag.others if not name.startswith("--")] + [f"{flag.name} {flag.value}".strip()]
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else textwrap.shorten(text, width, placeholder=" ...")


def _text(flag: Flag) -> str:
    return flag.text + (f" [{flag.default}]" if flag.default else "")


def _in_one_line(flag: Flag, width: int) -> str:
    """The text, or its beginning up to a sentence or clause, and the default."""
    text = _text(flag)
    if len(text) <= width:
        return text
    end = f" [{flag.default}]" if 0 < len(flag.default) <= 20 else ""
    for part in (r"(?<!e\.g)\. ", "; "):
        begins = re.split(part, flag.text)[0].rstrip(".")
        if len(begins) + len(end) <= width:
            return begins + end
    return _cut(flag.text, width - len(end)) + end


def short(kind: type, flags: Sequence[Flag], command: str) -> str:
    """At most 25 lines of 80 columns: what it does, its main options, three examples."""
    says, examples = told(kind)
    shown = [flag for flag in flags if not flag.recipe and not flag.positional]
    shown = [flag for flag in shown if flag.required] + [flag for flag in shown if not flag.required and not flag.part]
    own = len(shown)
    shown += [flag for flag in flags if flag.recipe and flag.name in COMMON]
    top = [
        *textwrap.wrap(usage(kind, flags, command), WIDTH, subsequent_indent="    "),
        "",
        *textwrap.wrap(says, WIDTH),
        "",
    ]
    bottom = ["", "examples:", *(f"  {line}" for line in examples), ""]
    total = sum(not flag.positional for flag in flags)
    last = f"All {total} options: trimtab {getattr(kind, 'HELP', command)} --help-all"
    room = LINES - len(top) - len(bottom) - 1
    if len(shown) > room:
        quiet = [flag for flag in shown[:own] if flag.name in {"--quiet", "--json"}]
        shown = [flag for flag in shown if flag not in quiet][:room]
    heads = [head if len(head := _head(flag)) <= 34 else _head(replace(flag, value="WORD")) for flag in shown]
    column = min(max(map(len, heads), default=0), 28) + 4
    lines = []
    for flag, head in zip(shown, heads, strict=True):
        start = f"  {head}".ljust(column)
        start = start if start.endswith(" ") else start + "  "
        lines.append(start + _in_one_line(flag, WIDTH - len(start)))
    return "\n".join([*top, *lines, *bottom, last]) + "\n"


def whole(kind: type, flags: Sequence[Flag], command: str) -> str:
    """Every option with its whole text and its default, part by part."""
    width = max(WIDTH, min(shutil.get_terminal_size().columns, 110))
    says, examples = told(kind)
    lines = [
        usage(kind, flags, command),
        "",
        *textwrap.wrap(says, width),
        "",
        "examples:",
        *(f"  {line}" for line in examples),
    ]
    parts = dict.fromkeys((flag.part, flag.recipe and not flag.part) for flag in flags)
    for part, recipe in parts:
        title = part.split("\n")[0].rstrip(".") if part else "fields of the recipe" if recipe else "options"
        lines += ["", *textwrap.wrap(f"{title}:", width, subsequent_indent="  ")]
        for flag in flags:
            if (flag.part, flag.recipe and not flag.part) != (part, recipe):
                continue
            switch = [name for name in flag.others if name.startswith("--")] if flag.switch else []
            head = " / ".join([_head(flag), *switch])
            text = _text(flag) + (" Required." if flag.required else "")
            lines += [f"  {head}", *textwrap.wrap(text, width, initial_indent="      ", subsequent_indent="      ")]
    return "\n".join(lines) + "\n"

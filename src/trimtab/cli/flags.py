"""The flags of a command, read from its dataclass: what help, completion and the nearest names are made of."""

from __future__ import annotations

import ast
import dataclasses
import difflib
import functools
import inspect
import itertools
import re
import textwrap
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import tyro

POSITIONAL = get_args(tyro.conf.Positional[int])[1]
ARGUMENTS = {"runs": "RUN", "folder": "SET", "folders": "DIR"}
"""What arguments are called, where not by their own names."""
WORDS = {int: "N", float: "X", str: "TEXT", Path: "PATH"}


@dataclass(frozen=True)
class Flag:
    """One option or argument.

    Attributes:
        name: as it is typed, such as `--var.strength`; of an argument its word in capitals.
        value: what it takes, in a word, such as `N` or `test|validation`; empty for a switch.
        text: what it is.
        default: in words; empty where there is none to tell.
        part: of which part of the command, such as `Learning rate over the run.`; empty for the command's own.
        recipe: whether it is a field of a recipe.
        required, positional, switch: what it is.
        others: further spellings, `--no-` of a switch and short ones.
    """

    name: str
    value: str = ""
    text: str = ""
    default: str = ""
    part: str = ""
    recipe: bool = False
    required: bool = False
    positional: bool = False
    switch: bool = False
    others: tuple[str, ...] = ()


@functools.cache
def attribute_texts(kind: type) -> dict[str, str]:
    """The docstrings under the fields of a dataclass, by name, those of its bases too."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        node = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(node, ast.ClassDef)
        for field, text in itertools.pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                found[ast.unparse(field.target)] = " ".join(str(text.value.value).split())
    return found


def _fields(kind: type) -> Iterator[tuple[str, Any, Any, str]]:
    """(name, annotation, default, text) of each field of a dataclass or of a part of a recipe."""
    hints = get_type_hints(kind, include_extras=True)
    if dataclasses.is_dataclass(kind):
        texts = attribute_texts(kind)
        for field in dataclasses.fields(kind):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            yield field.name, hints[field.name], default, texts.get(field.name, "")
    else:
        for name, info in kind.model_fields.items():  # type: ignore[attr-defined]
            default = dataclasses.MISSING if info.is_required() else info.get_default(call_default_factory=True)
            yield name, hints.get(name, info.annotation), default, " ".join((info.description or "").split())


def _plain(annotation: Any) -> tuple[Any, list[Any]]:
    """The type inside `Annotated` and optional unions, and what was annotated."""
    beside: list[Any] = []
    while True:
        if get_origin(annotation) is Annotated:
            annotation, *more = get_args(annotation)
            beside += more
        elif get_origin(annotation) in (Union, types.UnionType):
            rest = [part for part in get_args(annotation) if part is not type(None)]
            if len(rest) != 1:
                return annotation, beside
            annotation = rest[0]
        else:
            return annotation, beside


def _value(kind: Any) -> str:
    """What a flag of that type takes."""
    kind = _plain(kind)[0]
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return "|".join(map(str, inside))
    if origin in (tuple, list):
        return f"{_value(inside[0])} ..." if Ellipsis in inside or origin is list else " ".join(map(_value, inside))
    if origin is dict:
        return "KEY VALUE ..."
    if origin in (Union, types.UnionType):
        return "|".join(dict.fromkeys(_value(part) for part in inside if part is not type(None)))
    return "yes|no" if kind is bool else WORDS.get(kind, "TEXT")


def _shown(default: Any) -> str:
    if default is None or default is dataclasses.MISSING or default == "" or default == ():
        return ""
    if isinstance(default, tuple | list):
        return " ".join(map(str, default))
    return "" if isinstance(default, dict) else str(default)


def flags_of(kind: type, default: Any = None) -> list[Flag]:
    """Every flag of a command's dataclass, its own first.

    Args:
        kind: the dataclass.
        default: an object of it, whose values are the defaults shown; default those of its fields.
    """
    found = list(_walk(kind, default, "", "", recipe=False))
    return sorted(found, key=lambda flag: (bool(flag.part), flag.recipe))


def _walk(kind: type, default: Any, prefix: str, part: str, *, recipe: bool) -> Iterator[Flag]:
    for name, annotation, own, text in _fields(kind):
        value = getattr(default, name) if default is not None else own
        plain, beside = _plain(annotation)
        config = next((item for item in beside if hasattr(item, "aliases")), None)
        if dataclasses.is_dataclass(plain) or hasattr(plain, "model_fields"):
            flat = config is not None and config.name == ""
            inner = prefix if flat else f"{prefix}{name.replace('_', '-')}."
            title = part if flat else inspect.getdoc(plain) or name
            of_recipe = recipe or plain.__name__ == "Recipe"
            inside = None if value is dataclasses.MISSING else value
            yield from _walk(plain, inside, inner, title, recipe=of_recipe)
            continue
        required = value is dataclasses.MISSING
        if POSITIONAL in beside:
            word = ARGUMENTS.get(name, name.upper())
            several = " ..." if get_origin(plain) is tuple else ""
            yield Flag(word + several, _value(plain), text, "", part, recipe, required, positional=True)
            continue
        flag = f"--{prefix}{name.replace('_', '-')}"
        switch = plain is bool and get_origin(annotation) not in (Union, types.UnionType)
        others = list(config.aliases or ()) if config is not None else []
        if switch:
            others.append(f"--{prefix}no-{name.replace('_', '-')}")
        yield Flag(
            flag, "" if switch else _value(plain), text, "on" if value is True else "" if value is False else _shown(value),
            part, recipe, required, switch=switch, others=tuple(others),
        )  # fmt: skip


def known(flags: Iterable[Flag]) -> list[str]:
    """Every spelling."""
    return [word for flag in flags if not flag.positional for word in (flag.name, *flag.others)]


def check_words(words: Iterable[str], flags: Iterable[Flag], command: str) -> None:
    """Refuse a flag that the command does not have, with the nearest it has.

    Raises:
        ValueError: there is one.
    """
    names = known(flags)
    for word in words:
        name = word.partition("=")[0]
        if not re.match(r"--?[A-Za-z]", name) or name.replace("_", "-") in names:
            continue
        near = nearest(name.replace("_", "-"), names)
        advice = f"did you mean {' or '.join(near)}?" if near else f"trimtab {command} --help-all lists all"
        raise ValueError(f"no option {name}; {advice}")


def _last(flag: str) -> str:
    return flag.lstrip("-").rpartition(".")[2]


def nearest(flag: str, names: Iterable[str]) -> list[str]:
    """At most three of the names that are like `flag`, as a whole or in their last part.

    Example:
        >>> nearest("--sparsity", ["--pruning.sparsities", "--epochs"])
        ['--pruning.sparsities']
        >>> nearest("--lr", ["--sgd.lr", "--adamw.lr", "--muon.lr"])
        ['--sgd.lr', '--adamw.lr', '--muon.lr']
    """
    scored = []
    for name in names:
        whole = difflib.SequenceMatcher(None, flag.lower(), name).ratio()
        last = difflib.SequenceMatcher(None, _last(flag.lower()), _last(name)).ratio()
        scored.append((max(whole, 0.98 * last), name))
    best = max((score for score, _ in scored), default=0.0)
    within = 0.05 if "." in flag else 0.25  # without its section a name may be meant in several
    found = sorted((item for item in scored if item[0] >= max(0.7, best - within)), key=lambda item: -item[0])
    near = [name for _, name in found]
    other = [
        name for name in near[2:] if _last(name) not in {_last(one) for one in near[:2]}
    ]  # not the same of three sections
    return [*near[:2], *(other or near[2:])[:1]]

"""The sections of a recipe: what they have in common, and how one is made from a lever's constructor."""

from __future__ import annotations

import functools
import inspect
import re
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from trimtab.parameters import Rule
from trimtab.registry import TRAINED, Entry, of_home

PLAIN = (bool, int, float, str, type(None))
"""Types of settings that a recipe can hold, beside literals and sequences of these."""
HANDED = frozenset(
    {"self", "base", "params", "model", "rule", "seed", "generator", "fixed", "total_steps", "steps_per_epoch"}
)
"""Arguments that a run gives to its levers; they are no settings."""


class Section(BaseModel):
    """A part of a recipe; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class LeverSection(Section):
    """The settings of a lever; a bare value stands for the first of them, one value for a sequence of one."""

    lever: ClassVar[str] = ""
    """Name of the section."""

    @model_validator(mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if isinstance(value, BaseModel):
            return value
        if not isinstance(value, Mapping):
            value = {} if value is None else {next(iter(cls.model_fields)): value}
        return {
            key: (item,) if cls._is_sequence(key) and isinstance(item, PLAIN[:-1]) else item
            for key, item in value.items()
        }

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: the class is made there anew from the registry."""
        return _restored, (self.lever, self.model_dump())

    @classmethod
    def _is_sequence(cls, name: str) -> bool:
        info = cls.model_fields.get(name)
        kinds = (info.annotation, *get_args(info.annotation)) if info is not None else ()
        return any(get_origin(kind) is tuple and Ellipsis in get_args(kind) for kind in kinds)


@dataclass(frozen=True)
class Setting:
    """One argument of a lever's constructor that a recipe can give."""

    name: str
    type: Any
    default: Any
    text: str

    @property
    def required(self) -> bool:
        """Whether the constructor has no default for it."""
        return self.default is inspect.Parameter.empty


def _plain(annotation: Any) -> Any:
    """The part of an annotation that a YAML value can have; None when there is none.

    Functions and objects fall out of unions, sequences become tuples, and a sequence takes the place of its items' type.
    """
    origin = get_origin(annotation)
    if annotation in PLAIN or origin is Literal:
        return annotation
    if origin in (Union, types.UnionType):
        kept = [part for part in map(_plain, get_args(annotation)) if part is not None]
        if type(None) in get_args(annotation) and type(None) not in kept:
            kept.append(type(None))
        items = {get_args(part)[0] for part in kept if get_origin(part) is tuple}
        kept = [part for part in kept if part not in items]
        return Union[tuple(kept)] if [part for part in kept if part is not type(None)] else None  # noqa: UP007
    if origin in (Sequence, list, tuple) and (arguments := get_args(annotation)):
        inner = [_plain(part) for part in arguments if part is not Ellipsis]
        if None in inner:
            return None
        several = origin is not tuple or Ellipsis in arguments
        return types.GenericAlias(tuple, (inner[0], Ellipsis) if several else tuple(inner))
    return None


def explained(docstring: str) -> dict[str, str]:
    """The first sentences of the `Args:` of a docstring, by name.

    Example:
        >>> explained('''One line.
        ...
        ... Args:
        ...     strength: lambda. Default 1e-5 (the paper).
        ...     r, eps: small numbers,
        ...         above 0.
        ...
        ... Raises:
        ...     ValueError: never.
        ... ''')["eps"]
        'small numbers, above 0.'
    """
    text = inspect.cleandoc(docstring)
    _, found, rest = text.partition("Args:\n")
    if not found:
        return {}
    block = re.split(r"\n(?=\S)", rest)[0]
    items: dict[str, str] = {}
    for item in re.split(r"\n(?= {4}\S)", "\n" + block):
        names, colon, words = item.strip().partition(":")
        if colon:
            items |= {name.strip(): " ".join(words.split()) for name in names.split(",")}
    return items


def settings_of(entry: Entry) -> tuple[Setting, ...]:
    """What a recipe can give to the lever: names, types and defaults of its constructor, help from its `Args:`."""
    built = entry.load()
    parameters = inspect.signature(built).parameters
    hints = get_type_hints(getattr(built, "__init__") if isinstance(built, type) else built)  # noqa: B009
    text = explained(inspect.getdoc(built) or "")
    found = []
    for name, parameter in parameters.items():
        kept = _plain(hints.get(name)) if name not in HANDED | entry.fixed.keys() else None
        if kept is not None:
            found.append(Setting(name, kept, parameter.default, text.get(name, "")))
    return tuple(found)


@functools.cache
def section(name: str) -> type[LeverSection]:
    """The pydantic section of that name: one field for each setting; of a lever with a rule also `include` and `exclude`."""
    entry = next(row for row in of_home(*TRAINED).values() if row.section == name)
    fields: dict[str, Any] = {}
    for item in settings_of(entry):
        kind = item.type | None if item.required else item.type
        default = None if item.required else item.default
        fields[item.name] = (kind, Field(default=default, description=item.text))
    if "rule" in inspect.signature(entry.load()).parameters:
        for field, text in (("include", "Shell patterns; a tensor's name must match one of them."),
                            ("exclude", "Shell patterns; a tensor's name must match none of them.")):  # fmt: skip
            fields[field] = (tuple[str, ...], Field(default=(), description=text))
    words = "".join(part.capitalize() for part in name.split("_"))
    made = create_model(words, __base__=LeverSection, __doc__=f"{entry.line} ({entry.source}).", **fields)
    made.lever = name
    return made


def _restored(name: str, settings: dict[str, Any]) -> LeverSection:
    return section(name)(**settings)


def build(entry: Entry, name: str, settings: LeverSection, /, *arguments: Any, **handed: Any) -> Any:
    """The lever itself, from its section and what the run hands to it where its constructor names that.

    Raises:
        ValueError: a setting out of range or missing; the message begins with the section's name.
    """
    built: Callable[..., Any] = entry.load()
    given = settings.model_dump()
    patterns = {key: given.pop(key, ()) for key in ("include", "exclude")}
    missing = [item.name for item in settings_of(entry) if item.required and given.get(item.name) is None]
    if missing:
        raise ValueError(f"{name}.{missing[0]} must be given: {entry.name} has no default for it")
    takes = inspect.signature(built).parameters
    given |= {key: value for key, value in handed.items() if key in takes}
    if any(patterns.values()):
        given["rule"] = replace(getattr(built, "default_rule", Rule()), **patterns)
    try:
        return built(*arguments, **given, **entry.fixed)
    except (ValueError, TypeError) as error:
        text = str(error)
        joint = "." if text.split(" ", 1)[0] in given else ": "
        raise ValueError(f"{name}{joint}{text}") from None

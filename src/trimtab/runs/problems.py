"""What is wrong with a recipe, in words: one line, the nearest names, no type walls."""

from __future__ import annotations

from pydantic import BaseModel, ValidationError

from trimtab.checks import hint
from trimtab.inputs import shortened


def all_fields(section: type[BaseModel], prefix: str = "") -> list[str]:
    """Dotted names of all fields, those of the sections too."""
    names: list[str] = []
    for name, info in section.model_fields.items():
        names.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names += all_fields(info.annotation, f"{prefix}{name}.")
    return names


def nearest(name: str, allowed: list[str]) -> str:
    """`; did you mean ...?` with the nearest of the allowed names, or all of them."""
    alike = [field for field in allowed if field.split(".")[-1] == name.split(".")[-1]][:3]  # given without its section
    return f"; {hint(name, allowed, 'fields', otherwise=alike)}"


def problems(error: ValidationError, fields: list[str], section: str = "") -> str:
    """What is wrong with a recipe, or with its part `section`, in one line."""
    found = []
    items = error.errors()
    for item in items:
        place = item["loc"]
        if any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in items):
            continue  # a list that is too short for its items' own mistakes
        dotted = ".".join(str(part) for part in (*filter(None, [section]), *place))
        if item["type"] == "extra_forbidden":
            found.append(f"unknown field {dotted!r}{nearest(dotted, fields)}")
        else:
            text = shortened(item["msg"].removeprefix("Value error, "), 500)  # our own errors name the value themselves
            got = "" if item["type"] == "value_error" else f" (got {shortened(repr(item.get('input')), 200)})"
            found.append(f"{dotted}: {text}{got}" if dotted else f"{text}{got}")
    return shortened("; ".join(found))

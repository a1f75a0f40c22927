"""Flags of readers and organ sources: options as KEY=VALUE, and the source that a folder of masks looks like."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from trimtab.inputs import named, shortened
from trimtab.medclm import organs


def pairs(items: Sequence[str], flag: str) -> dict[str, Any]:
    """KEY=VALUE items, values read as YAML.

    >>> pairs(["clip=true", "anatomy=[optic_disc]"], "--reader")
    {'clip': True, 'anatomy': ['optic_disc']}
    """
    found: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise ValueError(f"{flag} takes KEY=VALUE, got {item!r}")
        with named(f"{flag} {shortened(item, 80)}", "is not readable as YAML"):
            found[key] = yaml.safe_load(value)
    return found


def organ_sources(
    path: Path | None, name: str | None, options: Mapping[str, Any]
) -> tuple[tuple[str, dict[str, Any]], ...]:
    """(name, options) of the organ source, its first argument being `path`, options that are paths made paths."""
    if path is None and name is None:
        if options:
            raise ValueError("--organ-options need --organs or --organ-format")
        return ()
    chosen = name or _seen(path)
    wanted = list(inspect.signature(organs.source_class(chosen)).parameters.values())
    unknown = sorted(set(options) - {parameter.name for parameter in wanted})
    if unknown:
        names = ", ".join(parameter.name for parameter in wanted)
        raise ValueError(f"organ source {chosen} has no option {', '.join(unknown)}; it has {names}")
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for parameter in wanted:
        if parameter.name in found and "Path" in str(parameter.annotation) and found[parameter.name] is not None:
            found[parameter.name] = Path(str(found[parameter.name]))
    if path is not None:
        found[wanted[0].name] = path
    missing = [one.name for one in wanted if one.default is inspect.Parameter.empty and one.name not in found]
    if missing:
        flags = ["--organs PATH" if name == wanted[0].name else f"--organ-options {name}=..." for name in missing]
        raise ValueError(f"organ source {chosen} needs {', '.join(missing)}: give {' and '.join(flags)}")
    return ((chosen, found),)


def _seen(path: Path | None) -> str:
    """The organ source that a folder or file looks like."""
    if path is None or not path.exists():
        raise FileNotFoundError(f"--organs {path} does not exist")
    if path.is_file():
        return "coco"
    if (path / "labels.json").is_file():
        return "labels"
    for pattern, name in (("*.json", "rle"), ("*.nii*", "nifti"), ("*/*.png", "png")):
        if next(path.glob(pattern), None) is not None:
            return name
    raise ValueError(
        f"--organs {path}: no masks that are known; say which with --organ-format {', '.join(organs.names())}"
    )

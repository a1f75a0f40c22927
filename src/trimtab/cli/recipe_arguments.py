"""How a recipe's fields become flags, and what `--vary` takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from pydantic import ValidationError

from trimtab.cli.arguments import MisuseError, check_first, parse
from trimtab.inputs import named, shortened
from trimtab.runs.problems import problems
from trimtab.runs.recipe import FIELDS, SECTIONS, Recipe, load_recipe
from trimtab.studies.study_file import StudyFile, number_or_text, read_study

T = TypeVar("T")

Fields = Annotated[Recipe, tyro.conf.arg(name="")]


def parse_with_study(command: Callable[..., T], arguments: Sequence[str], name: str) -> tuple[T, StudyFile | None]:
    """As `parse_with_recipe`, of a command that takes `--study FILE`, which may name the recipe and settings of it.

    Raises:
        ValueError: the file is wrong, names no recipe where the command line names none, or stands beside --methods or --vary.
    """
    words = list(arguments)
    flags = [word.partition("=") for word in words]
    at = next((place for place, (flag, _, _) in enumerate(flags) if flag == "--study"), None)
    if at is None:
        return parse_with_recipe(command, words, name), None
    _, equals, value = flags[at]
    name_of_file = value if equals else "".join(words[at + 1 : at + 2])
    if not name_of_file or name_of_file.startswith("-"):
        raise ValueError("--study needs a file")
    file = Path(name_of_file)
    study = read_study(file)
    for flag, _, _ in flags:
        if flag in {"--methods", "--vary"}:
            raise ValueError(f"{flag} and --study are both given; the rows of {file} say what is run")
    if words[0].startswith("-"):
        if not study.recipe:
            raise ValueError(f"{file} names no recipe; give one first: trimtab {name} RECIPE --study {file}")
        beside = file.parent / study.recipe
        words.insert(0, str(beside) if beside.exists() else study.recipe)
    return parse_with_recipe(command, words, name, settings=study.settings), study


def parse_with_recipe(
    command: Callable[..., T],
    arguments: Sequence[str],
    name: str,
    settings: Mapping[str, Any] | None = None,
    **rest: Any,
) -> T:
    """Parse a command whose first word is a recipe and whose flags have that recipe's values as defaults.

    `--levers` and `--method` replace both, since they say the same; `--clip-norm 1` is short for the first setting of a
    lever; `--l1@head.strength 1e-3` belongs to a lever with a suffix.
    """
    first = arguments[0] if arguments and not arguments[0].startswith("-") else "digits"
    if "methods" in getattr(command, "__dataclass_fields__", {}):
        alone = [word for word in arguments if word.partition("=")[0] in {"--method", "--levers"}]
        if alone:
            raise ValueError(f"{alone[0]} is for one run; this command takes --methods sgd l1+cram+ ...")
    recipe = load_recipe(first).with_settings(settings) if settings else load_recipe(first)
    words, suffixed = _without_suffixed(_first_settings(arguments))
    if any(word.partition("=")[0] in {"--levers", "--method"} for word in words):
        recipe = recipe.model_copy(update={"method": "", "levers": (), "suffixed": {**recipe.suffixed, **suffixed}})
    elif suffixed:
        recipe = recipe.with_settings(
            {f"{section}.{field}": value for section, fields in suffixed.items() for field, value in fields.items()}
        )
    given = _parsed(command, words, name, command(first, recipe, **rest))
    check_first(given.recipe, first, "RECIPE", name)  # type: ignore[attr-defined]
    return given


def _parsed(command: Callable[..., T], words: Sequence[str], name: str, default: T) -> T:
    """Parse; what a section refuses becomes one line."""
    try:
        return parse(command, words, name, default)
    except ValidationError as error:
        raise ValueError(problems(error, FIELDS)) from None
    except MisuseError as misused:
        if (found := _refused_section(misused)) is not None:
            raise ValueError(problems(found[0], FIELDS, found[1])) from None
        raise


def _refused_section(stop: BaseException) -> tuple[ValidationError, str] | None:
    """The recipe's section whose values made tyro stop, and what it holds against them; None for another usage error."""
    cause, section = stop.__context__, ""
    while cause is not None and not isinstance(cause, ValidationError):
        if isinstance(place := getattr(cause, "arg", None), str):
            section = place.removeprefix("fields").removeprefix(".")
        cause = cause.__context__
    return None if cause is None else (cause, section)


def _first_settings(arguments: Sequence[str]) -> list[str]:
    """`--clip-norm` as `--clip-norm.max-norm`: a section's bare flag is its first setting's; `--finetune` is pruning's."""
    words = []
    for word in arguments:
        flag, equals, value = word.partition("=")
        section = SECTIONS.get(flag.removeprefix("--").replace("-", "_")) if flag.startswith("--") else None
        if flag == "--finetune":
            flag = "--pruning.finetune"
        if section is not None:
            flag += "." + next(iter(section.model_fields)).replace("_", "-")
        words.append(flag + equals + value)
    return words


def _without_suffixed(arguments: Sequence[str]) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The words without `--l1@head.strength 1e-3`, and what those say."""
    words: list[str] = []
    found: dict[str, dict[str, Any]] = {}
    rest = iter(arguments)
    for word in rest:
        flag, equals, value = word.partition("=")
        if not flag.startswith("--") or "@" not in flag:
            words.append(word)
            continue
        section, dot, field = flag.removeprefix("--").replace("-", "_").partition(".")
        if not dot:
            raise ValueError(f"{flag} needs the name of a setting, such as --{section}.strength")
        text = value if equals else next(rest, None)
        if text is None:
            raise ValueError(f"{flag} needs a value")
        found.setdefault(section, {})[field] = number_or_text(text)
    return words, found


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
            found[field] = [number_or_text(value) for value in values.split(",")]
    return found

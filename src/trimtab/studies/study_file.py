"""A study written down before its first run: rows of methods, settings and seeds, in the order in which they run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, field_validator

from trimtab.files import write_text
from trimtab.inputs import check_expansion, named, utf8
from trimtab.runs.problems import all_fields, problems
from trimtab.runs.recipe import Recipe
from trimtab.runs.section import Section
from trimtab.studies.contrasts import Contrast, check_contrasts
from trimtab.studies.variants import Variant, applies, shown, variants

Values = dict[str, Any]


def number_or_text(text: str) -> Any:
    """A word as the number, truth value or text that it stands for.

    Example:
        >>> [number_or_text(word) for word in ("3", "1e-5", "true", "relative")]
        [3, 1e-05, True, 'relative']
    """
    try:  # YAML 1.1 reads 1e-5 as a string
        return int(text) if text.lstrip("+-").isdigit() else float(text)
    except ValueError:
        return yaml.safe_load(text)


def _numbers(value: Any) -> Any:
    """`1e-5`, which YAML 1.1 reads as text, as the number that was meant; in lists too."""
    if isinstance(value, list):
        return [_numbers(item) for item in value]
    return number_or_text(value) if isinstance(value, str) else value


class _Part(Section):
    settings: Values = Field(default={})
    """Dotted recipe fields with one value each."""
    vary: dict[str, list[Any]] = Field(default={})
    """Dotted recipe fields with several values each: a grid."""
    seeds: tuple[int, ...] = ()
    """Seeds."""

    @field_validator("settings", "vary", mode="before")
    @classmethod
    def _as_meant(cls, value: Any) -> Any:
        return {key: _numbers(item) for key, item in value.items()} if isinstance(value, Mapping) else value


class StudyRow(_Part):
    """Runs of one method."""

    method: str
    """Levers joined by +."""
    label: str = ""
    """Name in tables and figures; default the method with its settings in brackets."""


class StudyFile(_Part):
    """What a study runs, and in which order; `settings`, `vary` and `seeds` on top count for every row that reads them."""

    recipe: str = ""
    """Base recipe, where the command line names none: a shipped name, or a file beside this one."""
    rows: tuple[StudyRow, ...] = Field(min_length=1)
    """The runs, row after row; in a row all of the first seed come before the second."""
    contrasts: tuple[Contrast, ...] = ()
    """What is judged: own minus other, at a sparsity, recalibrated or not; corrected for how many are named."""

    def to_yaml(self) -> str:
        """The text that `read_study` reads back to an equal study."""
        text: str = yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False)
        return text

    def write(self, path: Path) -> None:
        """Write as YAML, atomically."""
        write_text(path, self.to_yaml())


FIELDS = [
    *all_fields(StudyFile),
    *(f"rows.{name}" for name in all_fields(StudyRow)),
    *(f"contrasts.{name}" for name in all_fields(Contrast)),
]


def read_study(path: Path) -> StudyFile:
    """Read a study file.

    Raises:
        FileNotFoundError: there is none.
        ValueError: damaged YAML, an unknown field, or no row; names the file and the place.
    """
    with named(path, "is not readable as YAML"):
        data = yaml.safe_load(utf8(path))
        check_expansion(data)
    if not isinstance(data, dict):
        raise ValueError(f"{path}: a study is a mapping with rows, got {type(data).__name__}")
    try:
        return StudyFile.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{path}: {problems(error, FIELDS)}") from None


def study_variants(study: StudyFile, recipe: Recipe, seeds: tuple[int, ...], where: str = "study") -> list[Variant]:
    """The runs of a study in their order; one that occurs again in a later row is run once.

    Args:
        study: the rows.
        recipe: the base recipe, with the study's own settings.
        seeds: where neither row nor study names any.
        where: what errors begin with.

    Raises:
        ValueError: names the row: an unknown method or field, a setting that its method does not read, or two different
            runs of one label and seed; or a contrast of what the rows do not measure.

    Example:
        >>> study = StudyFile(vary={"sgd.weight_decay": [1e-4, 1e-3]}, rows=[{"method": "sgd"}, {"method": "adamw"},
        ...                   {"method": "l1", "label": "l1", "settings": {"l1.strength": 1e-4}, "vary": {}}])
        >>> [v.label for v in study_variants(study, Recipe(), (0,))][:3]
        ['sgd[sgd.weight_decay=0.0001]', 'sgd[sgd.weight_decay=0.001]', 'adamw']
    """
    found: dict[tuple[str, int], Variant] = {}
    for number, row in enumerate(study.rows, start=1):
        try:
            for variant in _of_row(study, row, recipe, seeds):
                other = found.setdefault((variant.label, variant.recipe.seed), variant)
                if other.recipe != variant.recipe:
                    raise ValueError(
                        f"another run is named {variant.label!r} with seed {variant.recipe.seed}; give one of them a label"
                    )
        except ValueError as error:
            raise ValueError(f"{where}, row {number} ({row.method}): {error}") from None
    runs = list(found.values())
    check_contrasts(study.contrasts, {run.label: run.recipe.pruning.sparsities for run in runs}, where)
    return runs


def _of_row(study: StudyFile, row: StudyRow, recipe: Recipe, seeds: tuple[int, ...]) -> list[Variant]:
    """One row's runs, seeds outermost."""
    method = recipe.with_settings({**row.settings, "method": row.method})
    common = {field: values for field, values in study.vary.items() if applies(field, method)}
    vary = {**{field: values for field, values in common.items() if field not in row.settings}, **row.vary}
    for field, tried in vary.items():
        if not tried:
            raise ValueError(f"vary {field} is empty: nothing to run")
    found = []
    for seed in row.seeds or study.seeds or seeds:
        for values in itertools.product(*vary.values()):
            given = dict(zip(vary, values, strict=True))
            every = {field: [value] for field, value in {**row.settings, **given}.items()}
            for field in every:
                if not applies(field, method):
                    raise ValueError(f"{field} is not read by {row.method}")
            (variant,) = variants(recipe, [row.method], [seed], every)
            if row.label:
                grid = ",".join(f"{field}={shown(value)}" for field, value in given.items())
                variant = replace(variant, label=f"{row.label}[{grid}]" if grid else row.label)
            found.append(replace(variant, family=row.label or row.method))
    return found

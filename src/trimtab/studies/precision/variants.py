"""The runs of a study of number formats: full precision, then formats x rounding x scaling x step x compensation."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import Field

from trimtab.checks import positive
from trimtab.precision import named, recipe_named
from trimtab.precision.binarize import NAME as BINARY
from trimtab.precision.named_recipes import is_recipe
from trimtab.precision.rounding import Rounding
from trimtab.runs.precision_section import ROUNDED, Precision, ScalingName
from trimtab.runs.recipe import Recipe
from trimtab.studies.documents import Record
from trimtab.studies.variants import Variant

BASELINE = "full"
"""Label of the runs that round nothing."""


@dataclass(frozen=True)
class FormatStudy:
    """What is compared.

    Attributes:
        formats: names of number formats, and of recipes for the operands of products.
        rounding, scaling: each with each format.
        compensate: also run each with the step divided by the running shrinkage of all gradients.
        tensors: what is rounded, fields of the recipe's section `precision`.
        steps: factors of the recipe's learning rate, tried with full precision too.
    """

    formats: tuple[str, ...]
    rounding: tuple[Rounding, ...] = ("nearest",)
    scaling: tuple[str, ...] = ("none",)
    compensate: bool = False
    tensors: tuple[str, ...] = ("gradients",)
    steps: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        for what in ("formats", "rounding", "scaling", "tensors", "steps"):
            values = getattr(self, what)
            if not values:
                raise ValueError(f"{what} is empty: nothing to run")
            if len(set(values)) < len(values):
                raise ValueError(f"{what} holds a value twice: {', '.join(map(str, values))}")
        for name in self.formats:
            if name == BINARY and self.tensors != ("weights",):
                raise ValueError(f"{BINARY} is a format of weights alone; tensors must be weights, got {self.tensors}")
            if name != BINARY and not is_recipe(name):
                _known(name)
        for what, allowed in (("rounding", get_args(Rounding)), ("scaling", get_args(ScalingName))):
            for word in getattr(self, what):
                if word not in allowed:
                    raise ValueError(f"{what} is one of {', '.join(allowed)}, got {word!r}")
        for tensor in self.tensors:
            if tensor not in ROUNDED:
                raise ValueError(f"tensors are among {', '.join(ROUNDED)}, got {tensor!r}")
        if self.compensate and "gradients" not in self.tensors:
            raise ValueError(f"compensation is about rounded gradients, and only {', '.join(self.tensors)} are rounded")
        for factor in self.steps:
            positive("a step factor", factor)

    @property
    def of_tensors(self) -> tuple[str, ...]:
        """The formats among `formats`."""
        return tuple(name for name in self.formats if not is_recipe(name))

    def labels(self) -> list[str]:
        """Names of the variants, in the order in which they run."""
        return list(dict.fromkeys(variant.label for variant in format_variants(Recipe(), self, [0])))


def _known(name: str) -> None:
    """ValueError where this is neither a format nor a recipe."""
    try:
        named(name)
    except ValueError as error:
        try:
            recipe_named(name)
        except ValueError as other:
            raise ValueError(f"{error}. As a recipe: {other}") from None


class Setting(Record):
    """In what the runs of one study differ, but for the seed."""

    format: str = Field(description="number format or recipe, several joined by /; full: nothing is rounded")
    rounding: Rounding = "nearest"
    scaling: ScalingName = "none"
    compensated: bool = Field(default=False, description="step divided by the running shrinkage")
    step_factor: float = Field(default=1.0, description="learning rate over that of the study's other runs")

    def words(self) -> list[str]:
        """What differs from the plain way, a word for each."""
        return [word for name, _ in PLAIN if (word := self._word(name))]

    def _word(self, name: str) -> str:
        if getattr(self, name) == dict(PLAIN)[name]:
            return ""
        if name == "compensated":
            return name
        return f"step x{self.step_factor:g}" if name == "step_factor" else str(getattr(self, name)).replace("_", " ")

    def text(self) -> str:
        """Name in tables and figures: the format first.

        Example:
            >>> Setting(format="e2m1", rounding="toward_zero", step_factor=2.0).text()
            'e2m1, toward zero, step x2'
        """
        return ", ".join([self.format, *self.words()])

    @classmethod
    def from_text(cls, text: str) -> Setting:
        """Back from `text`: for documents of versions that kept nothing else.

        Example:
            >>> Setting.from_text("e2m1, toward zero, mx, step x2")
            Setting(format='e2m1', rounding='toward_zero', scaling='mx', compensated=False, step_factor=2.0)
        """
        format, *words = text.split(", ")
        found: dict[str, Any] = {"format": format}
        for word in words:
            if word.startswith("step x"):
                found["step_factor"] = float(word.removeprefix("step x"))
            elif word == "compensated":
                found["compensated"] = True
            else:
                value = word.replace(" ", "_")
                found["rounding" if value in get_args(Rounding) else "scaling"] = value
        return cls(**found)


PLAIN: tuple[tuple[str, Any], ...] = (
    ("rounding", "nearest"), ("scaling", "none"), ("compensated", False), ("step_factor", 1.0),
)  # fmt: skip
"""What a run that only has a format is."""


def setting_of(section: Precision, step: float = 1.0) -> Setting:
    """What distinguishes a run.

    Example:
        >>> setting_of(Precision(gradients="e2m1", scaling="mx", compensate="global"), 2.0).text()
        'e2m1, mx, compensated, step x2'
    """
    formats = list(
        dict.fromkeys(value for field in ("matmul", *ROUNDED) if (value := getattr(section, field)) is not None)
    )
    return Setting(
        format="/".join(formats) or BASELINE, rounding=section.rounding, scaling=section.scaling,
        compensated=section.compensate != "none", step_factor=step,
    )  # fmt: skip


def step_field(recipe: Recipe) -> str:
    """Dotted name of the recipe's learning rate."""
    return f"{recipe.base_name}.lr"


def format_variants(recipe: Recipe, study: FormatStudy, seeds: Sequence[int]) -> list[Variant]:
    """Every run, seeds outermost: full precision with each step, then each format with each combination, each recipe as it is.

    What the recipe itself says in its section `precision` (overflow, master weights, blocks, autocast, metering) holds for
    the formats too.

    Raises:
        ValueError: the same seed twice, no seed, the recipe itself names a format.

    Example:
        >>> [v.label for v in format_variants(Recipe(), FormatStudy(("e4m3",), compensate=True), [0])]
        ['full', 'e4m3', 'e4m3, compensated']
        >>> [v.label for v in format_variants(Recipe(), FormatStudy(("nvfp4", "e4m3")), [0])]
        ['full', 'nvfp4', 'e4m3']
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds must be one or more, each once, got {list(seeds)}")
    if recipe.precision.rounds:
        raise ValueError("the recipe names a number format itself; leave it out, --formats says which are compared")
    field = step_field(recipe)
    section, leaf = field.split(".")
    rate = getattr(getattr(recipe, section), leaf)
    choices: list[tuple[dict[str, object], float]] = [({}, step) for step in study.steps]
    ways = tuple(itertools.product(study.rounding, study.scaling, (False, True)[: 1 + study.compensate]))
    for name in study.formats:
        own: list[dict[str, object]] = [{"precision.matmul": name}]
        if not is_recipe(name):
            own = []
            for rounding, scaling, compensate in ways:
                given: dict[str, object] = {f"precision.{tensor}": name for tensor in study.tensors}
                given |= {"precision.rounding": rounding, "precision.scaling": scaling}
                own.append(given | ({"precision.compensate": "global"} if compensate else {}))
        choices += itertools.product(own, study.steps)
    found = []
    for seed in seeds:
        for given, step in choices:
            made = recipe.with_settings({**given, field: rate * step, "seed": seed})
            found.append(Variant(setting_of(made.precision, step).text(), made))
    return found

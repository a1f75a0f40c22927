"""A recipe says everything a training run needs; it is one YAML file and every field has a command-line flag."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import torch
import yaml
from pydantic import (
    Field,
    PositiveInt,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)
from torch import nn

from trimtab.checks import hint
from trimtab.files import write_text
from trimtab.inputs import check_expansion, named, utf8
from trimtab.observe.sinks import SINKS
from trimtab.registry import HOMES, TRAINED, checked, find, of_home, parse, settings_name
from trimtab.runs.precision_section import Precision
from trimtab.runs.problems import all_fields, nearest, problems
from trimtab.runs.section import LeverSection, Section, build, section
from trimtab.runs.sections import Data, Group, Model, Pruning, Schedule
from trimtab.runs.shipped import shipped_recipes
from trimtab.runs.views import Views

AS_IF = 1000
"""Steps of an epoch while a recipe is read, which does not know the data: only for levers that count them."""
TRACKED = (
    "gradients", "weights", "updates", "curvature", "bearing",
    "update_ratio", "nlm_cosine", "noise_scale", "softmax_collapse", "activations", "attention",
)  # fmt: skip


SECTIONS: dict[str, type[LeverSection]] = {row.section: section(row.section) for row in of_home(*TRAINED).values()}
"""The settings of every lever that acts in a run, by name, as its constructor has them."""


class RecipeFields(Section):
    """What every recipe has, whatever its levers."""

    name: str = "digits"
    """Name of the study."""
    method: str = "sgd"
    """The levers in short: joined by +, such as var, l1+cram+ or adamw (`trimtab list levers`); default the optimizer."""
    levers: tuple[str, ...] = ()
    """The levers in the order they act, such as l1 cram+ perpendicular; instead of the method. The same one twice takes a
    suffix and a section of its own: l1@head."""
    suffixed: dict[str, dict[str, Any]] = Field(default={})
    """Sections of levers with a suffix; in a file each stands under its own name, such as l1@head."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of weights, order, augmentation and draws."""
    epochs: PositiveInt = 20
    """Passes over the training images."""
    optimizer: str = "sgd"
    """Base optimizer where the levers name none."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Of the cross-entropy."""
    dice_weight: float = Field(default=0.5, ge=0, le=1)
    """Segmentation: share of the soft Dice loss, the rest is cross-entropy."""
    transforms: tuple[str, ...] = ()
    """Gradient transforms after the levers, in their order, such as centralize adaptive_clip; one word with + or none is read
    too."""
    accumulate: PositiveInt = 1
    """Batches whose gradients make one step."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train."""
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    """Under torchrun: replicate (ddp, auto) or shard (fsdp)."""
    checkpoint_every: PositiveInt = 1
    """Epochs between checkpoints; Ctrl-C always leaves one."""
    validate_every: PositiveInt = 1
    """Epochs between validations; the last epoch always has one."""
    views: Views = 1
    """Views of each image over which a trained classifier's outputs are averaged too, beside its plain accuracy: 2 mirrored, 6
    also moved by a pixel."""
    track: tuple[str, ...] = ()
    """Watch the gradients as they come (before penalty and transforms), and on request weights, updates, the curvature of the
    loss, bearing (what the network could bear), update_ratio, nlm_cosine, noise_scale, softmax_collapse, activations,
    attention."""
    track_every: PositiveInt = 10
    """Optimizer steps between tracked ones."""
    sink: tuple[str, ...] = ()
    """Hand loss, epochs and tracked rows on while it trains: jsonl, tensorboard, trackio, wandb, mlflow."""
    track_curvature_every: PositiveInt = 1
    """Epochs between measurements of the curvature."""
    track_curvature_batch: PositiveInt = 1024
    """Training images on which the curvature is measured."""
    track_bearing_every: PositiveInt | None = None
    """Epochs between looks at what the network bears, counted back from the last; default the fewest that cost at most 3 % of
    training."""
    track_bearing_images: PositiveInt = 500
    """Validation images (or windows of a text) on which that is measured, and training images for BatchNorm."""
    track_bearing_sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.8, 0.9)
    """Fractions of the weights to prune for it."""
    track_bearing_bits: tuple[Annotated[int, Field(ge=2, le=16)], ...] = (4,)
    """Bits to round the weights to for it."""
    data: Data = Data()
    model: Model = Model()
    schedule: Schedule = Schedule()
    groups: dict[str, Group] = Field(default={})
    """Parameters with rates of their own, by a name for each group; a parameter belongs to the first that takes it."""
    precision: Precision = Precision()
    pruning: Pruning = Pruning()

    @model_validator(mode="before")
    @classmethod
    def _one_list(cls, data: Any) -> Any:
        """`method` and `levers` say the same; sections of levers with a suffix come together under `suffixed`."""
        if not isinstance(data, Mapping):
            return data
        found = {key: value for key, value in data.items() if "@" not in str(key)}
        own = {key: value for key, value in data.items() if "@" in str(key)}
        if own:
            found["suffixed"] = {**found.get("suffixed", {}), **own}
        levers, method = _words(found.get("levers")), found.get("method")
        if not levers:
            method = method or found.get("optimizer") or "sgd"
            levers = parse(method) if isinstance(method, str) else ()
        elif not method:
            method = "+".join(map(str, levers))
        elif isinstance(method, str) and isinstance(levers, tuple) and parse(method) != levers:
            raise ValueError(
                f"method {method!r} and levers {list(levers)} are both given and differ; method is the short form, give one"
            )
        return {**found, "method": method, "levers": levers}

    @field_validator("levers")
    @classmethod
    def _composed(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return composed(value)

    @field_validator("optimizer")
    @classmethod
    def _known_optimizer(cls, value: str) -> str:
        return _known((value,), tuple(of_home("optimizer")), "optimizer")[0]

    @field_validator("precision", mode="before")
    @classmethod
    def _autocast_word(cls, value: Any) -> Any:
        """`bf16` stands for `{autocast: bf16}`."""
        return {"autocast": value} if isinstance(value, str) else value

    @field_validator("transforms", "track", "sink", mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        """`none`, `a+b` and `a,b` as lists, since a flag and `--vary` take one word for a value."""
        return _words(value, "+")

    @field_validator("transforms")
    @classmethod
    def _known_transforms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known(value, tuple(of_home("transform")), "gradient transform")

    @field_validator("sink")
    @classmethod
    def _known_sinks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known(value, tuple(SINKS), "sink")

    @field_validator("track")
    @classmethod
    def _known_quantities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known(value, TRACKED, "tracked quantity")

    @model_validator(mode="after")
    def _built_once(self) -> Self:
        """Build every lever once that is used or set apart from its defaults, so that a wrong setting is refused here."""
        if again := [name for name in self.transforms if name in self.levers]:
            raise ValueError(f"{again[0]} stands in the levers and in the transforms; name it once")
        if unused := self.suffixed.keys() - set(map(settings_name, self.levers)):
            raise ValueError(f"settings for {min(unused)!r}, which is not among the levers {list(self.levers)}")
        steps = {"total_steps": self.epochs * AS_IF, "steps_per_epoch": AS_IF}
        base = self.build(self.base_name, [nn.Parameter(torch.zeros(1))], **steps)
        set_apart = {
            row.section: row.name
            for row in of_home(*TRAINED).values()
            if self.section(row.name) != SECTIONS[row.section]()
        }
        others = [name for section, name in set_apart.items() if section not in map(settings_name, self.used)]
        for name in (*self.used[1:], *others):  # the first is the base optimizer
            home = find(name).home
            arguments = (
                ([nn.Parameter(torch.zeros(1))],) if home == "optimizer" else (base,) if home == "wrapper" else ()
            )
            self.build(name, *arguments, **steps)
        return self

    @property
    def base_name(self) -> str:
        """The plain optimizer that takes the step."""
        return next((name for name in self.levers if find(name).home == "optimizer"), self.optimizer)

    @property
    def used(self) -> tuple[str, ...]:
        """Every lever of the run in the order of action: base optimizer, levers, transforms, the final clipping."""
        own = tuple(name for name in self.levers if find(name).home != "optimizer")
        clip = ("clip_norm",) if self.clips_last else ()
        return (self.base_name, *own, *self.transforms, *clip)

    @property
    def clips_last(self) -> bool:
        """Whether `clip_norm` is given without a place among the levers: then it ends them."""
        named = "clip_norm" in self.levers or "clip_norm" in self.transforms
        return not named and self.section("clip_norm").model_dump()["max_norm"] is not None

    @property
    def is_plain(self) -> bool:
        """Whether nothing but the base optimizer and a final clipping acts."""
        return all(find(name).home == "optimizer" for name in self.levers) and not self.transforms

    def section(self, name: str) -> LeverSection:
        """The settings of a used lever, with its suffix if it has one."""
        key = settings_name(name)
        if "@" in key:
            return SECTIONS[key.partition("@")[0]].model_validate(self.suffixed.get(key, {}))
        found: LeverSection = getattr(self, key)
        return found

    def build(self, name: str, *arguments: Any, **handed: Any) -> Any:
        """The lever of that name with the recipe's settings; ValueError when one is out of range."""
        return build(find(name), settings_name(name), self.section(name), *arguments, **handed)

    def plain(self, mode: Literal["python", "json"] = "python") -> dict[str, Any]:
        """The fields as in a file: each section of a lever with a suffix under its own name."""
        data = self.model_dump(mode=mode)
        data |= data.pop("suffixed")
        return data

    def write(self, path: Path) -> None:
        """Write as YAML, atomically."""
        write_text(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The recipe as YAML text that `load_recipe` reads back to an equal recipe."""
        data = self.plain(mode="json")
        text: str = yaml.safe_dump(data, sort_keys=False)
        return text

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """A recipe with dotted fields replaced, checked like a file.

        With another method, sections of levers with a suffix that it does not name are left behind.

        Example:
            >>> Recipe().with_settings({"var.strength": 1e-4}).var.strength
            0.0001
        """
        data = self.plain()
        if settings.keys() & {"method", "levers"}:
            data |= {"method": "", "levers": ()}
        for dotted, value in settings.items():
            *parents, leaf = dotted.split(".")
            if len(parents) == 1 and "@" in parents[0]:
                find(parents[0])
                data.setdefault(parents[0], {}).setdefault(leaf, None)
            target: Any = data
            for part in parents:
                target = target.get(part, {}) if isinstance(target, dict) else {}
            if not isinstance(target, dict) or (leaf not in target and parents[-1:] != ["arguments"]):
                raise ValueError(f"no recipe field {dotted!r}{nearest(dotted, FIELDS)}")
            target[leaf] = value
        if settings.keys() & {"method", "levers"}:
            method, given = data["method"], {dotted.split(".")[0] for dotted in settings}
            listed = _words(data["levers"]) or (parse(method) if isinstance(method, str) else ())
            kept = given | set(map(settings_name, listed))
            data = {key: section for key, section in data.items() if "@" not in key or key in kept}
        made = recipe_from(data, "settings")
        made.precision.check_read({dotted.partition(".")[2] for dotted in settings if dotted.startswith("precision.")})
        return made


if TYPE_CHECKING:

    class Recipe(RecipeFields):
        """Everything a training run needs."""

        def __getattr__(self, name: str) -> Any: ...
else:
    Recipe = create_model(
        "Recipe",
        __base__=RecipeFields,
        __module__=__name__,
        __doc__="Everything a training run needs.",
        **{name: (kind, kind()) for name, kind in SECTIONS.items()},
    )


FIELDS = all_fields(Recipe)
"""Dotted names of every field."""


def composed(names: tuple[str, ...]) -> tuple[str, ...]:
    """`names` when these levers can act together in one run.

    Raises:
        ValueError: an unknown name, one that does not act by name in a run, one twice, two wrappers or two optimizers.

    Example:
        >>> composed(("l1", "cram+"))
        ('l1', 'cram+')
    """
    read = f"read as {list(names)}"
    for name in names:
        home = find(checked(name)).home
        if home not in TRAINED:
            where = "by the section precision" if home == "precision" else f"in its own room ({HOMES[home]})"
            raise ValueError(
                f"{name!r} does not act among the levers of a run but {where}; `trimtab show {name}` says more"
            )
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"{read}: {name!r} occurs twice; give the second a suffix and a section, such as {name}@head"
            )
    for home, why in (("wrapper", "each takes the whole step"), ("optimizer", "one takes the step")):
        those = [name for name in names if find(name).home == home]
        if len(those) > 1:
            raise ValueError(f"{read}: {' and '.join(those)} cannot act together, {why}")
    return names


def _words(value: Any, joint: str = ",") -> Any:
    """`none`, `a+b` and `a,b` as tuples, since a flag and `--vary` take one word for a value."""
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        return value
    parts = [part.strip() for word in words for part in word.replace(joint, ",").split(",")]
    return () if parts == ["none"] else tuple(parts)


def _known(names: tuple[str, ...], allowed: tuple[str, ...], what: str) -> tuple[str, ...]:
    """`names` when each is allowed and none occurs twice; ValueError otherwise."""
    for name in names:
        if name not in allowed:
            raise ValueError(f"unknown {what} {name!r}; allowed are {', '.join(allowed)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a {what} occurs twice")
    return names


def recipe_from(data: Any, where: str) -> Recipe:
    """The recipe in what a file holds; ValueError names `where`, the field, and the nearest name of an unknown one."""
    if not isinstance(data, dict):
        raise ValueError(f"{where}: a recipe is a mapping of fields, got {type(data).__name__}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{where}: {problems(error, FIELDS)}") from None


def load_recipe(source: str | Path) -> Recipe:
    """Read a recipe: a shipped name, a YAML file, or a run folder that holds `recipe.yaml`.

    Raises:
        ValueError: no such recipe, damaged YAML, an unknown field (with the nearest name) or a value out of range.

    Example:
        >>> load_recipe("digits").data.name
        'digits'
    """
    path = Path(source)
    if path.is_dir():
        path = path / "recipe.yaml"
    if path.suffix in {".yaml", ".yml"}:
        if not path.is_file():
            raise ValueError(f"no recipe file at {path}")
        text, where = utf8(path), str(path)
    elif str(source) in shipped_recipes():
        item = resources.files("trimtab.runs") / "recipes" / f"{source}.yaml"
        text, where = item.read_text(encoding="utf-8"), f"recipe {source}"
    else:
        known = hint(source, shipped_recipes(), "shipped ones")
        raise ValueError(f"no recipe {str(source)!r}: neither a YAML file nor a shipped name; {known}")
    with named(where, "is not readable as YAML"):
        data = yaml.safe_load(text)
        check_expansion(data)
    return recipe_from({} if data is None else data, where)


__all__ = ["SECTIONS", "Recipe", "load_recipe", "recipe_from"]

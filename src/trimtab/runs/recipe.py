"""A recipe says everything a training run needs; it is one YAML file and every field has a command-line flag."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, Field, PositiveFloat, PositiveInt, ValidationError, field_validator

from trimtab.files import write_text
from trimtab.inputs import check_expansion, named, shortened, utf8
from trimtab.runs.methods import METHODS, TRANSFORMS, check_method
from trimtab.runs.precision_section import Precision
from trimtab.runs.section import Section

TRACKED = ("gradients", "weights", "updates", "curvature")
Sparsity = Annotated[float, Field(ge=0, lt=1)]


class Data(Section):
    """Which images, and how they are served."""

    name: str = "digits"
    """Data set: see `trimtab list datasets`."""
    root: str | None = None
    """Folder or file that holds it; not needed for digits."""
    batch_size: PositiveInt = 64
    """Images per step and process."""
    validation: float = Field(default=0.1, gt=0, lt=1)
    """Fraction of the training images kept for choosing settings."""
    split_seed: int = 0
    """Seed of the validation split; the same for all runs that are compared."""
    limit_train: PositiveInt | None = None
    """Use only so many training images, class-balanced."""
    image_size: PositiveInt | None = None
    """Resize to this size, where the loader can."""
    augment: Literal["none", "flip", "crop_flip", "shift"] = "none"
    """Augmentation of the training images, on the device."""
    arguments: dict[str, bool | int | float | str] = Field(default={})
    """Further arguments of the loader."""


class Model(Section):
    """Which network."""

    name: str = "resnet_digits"
    """Network: see `trimtab list models`, or package.module:function."""
    arguments: dict[str, bool | int | float | str] = Field(default={})
    """Further arguments of its constructor."""
    channels_last: bool = True
    """Keep 4-D weights and images in channels-last memory order (about 1.2x faster on a CPU)."""


class SGD(Section):
    """torch.optim.SGD."""

    lr: PositiveFloat = 0.1
    """Learning rate."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(default=5e-4, ge=0)
    """L2 decay."""
    nesterov: bool = False
    """Nesterov momentum."""


class AdamW(Section):
    """torch.optim.AdamW."""

    lr: PositiveFloat = 1e-3
    """Learning rate."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled decay."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the moments."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


class Schedule(Section):
    """Learning rate over the run."""

    name: Literal["cosine", "constant", "step"] = "cosine"
    """Shape."""
    warmup_epochs: float = Field(default=0, ge=0)
    """Linear rise from 1 % over so many epochs."""
    step_epochs: PositiveInt = 30
    """step: epochs between drops."""
    gamma: PositiveFloat = 0.1
    """step: factor of a drop."""


class Var(Section):
    """VarianceAmplifier (arXiv 2511.14282)."""

    strength: float = Field(default=1e-5, ge=0)
    """lambda; 1e-5 in the paper's Figure 1."""
    form: Literal["variance", "relative", "as_printed"] = "variance"
    """variance as the paper; relative is ours."""
    r: PositiveFloat = 1e-8
    """Smoothing of |w|."""
    eps: PositiveFloat = 1e-8
    """Added to the variance."""


class L1(Section):
    """L1 penalty."""

    strength: float = Field(default=1e-5, ge=0)
    """Factor of sum |w|."""


class Hoyer(Section):
    """Hoyer-Square penalty (DeepHoyer, ICLR 2020)."""

    strength: float = Field(default=1e-5, ge=0)
    """Factor of (sum |w|)^2 / sum w^2."""


class Sam(Section):
    """Sharpness-aware minimisation (Foret 2021)."""

    rho: float = Field(default=0.05, ge=0)
    """Radius."""


class Asam(Section):
    """Adaptive sharpness-aware minimisation (Kwon 2021)."""

    rho: float = Field(default=0.5, ge=0)
    """Radius; 0.5 for CIFAR-10, 1.0 for CIFAR-100 in the paper."""
    eta: float = Field(default=0.01, ge=0)
    """Added to |w|."""


class Cram(Section):
    """Compression-aware minimisation (Peste, ICLR 2023); `cram+` adds the plain gradient."""

    rho: float = Field(default=0.15, ge=0)
    """Step of the perturbation, not normalised."""
    sparsities: tuple[Sparsity, ...] = (0.5, 0.7, 0.8, 0.9, 0.95)
    """One is drawn at every step."""
    sparse_grad: bool = True
    """Mask the gradient that is taken at the compressed weights."""
    pattern: tuple[str, ...] | None = None
    """N:M patterns such as 2:4 instead of sparsities."""


class Autoscale(Section):
    """Gradient autoscaled normalisation (arXiv 2509.03677)."""

    scale: Literal["running_max", "first", "ema", "log"] = "log"
    """Rule of alpha_t [ours]."""
    granularity: Literal["tensor", "channel"] = "tensor"
    """What is centred."""


class ZScore(Section):
    """Layer-wise gradient normalisation (ZNorm, arXiv 2408.01215)."""

    granularity: Literal["tensor", "channel"] = "tensor"
    """What is normalised."""
    eps: PositiveFloat | None = None
    """Added to the standard deviation; default 1e-12 per tensor, 1e-8 per channel."""


class Centralize(Section):
    """Gradient centralization (ECCV 2020)."""

    conv_only: bool = False
    """Only tensors of more than three dimensions."""


class AdaptiveClip(Section):
    """Adaptive gradient clipping (arXiv 2102.06171)."""

    clip: PositiveFloat = 0.01
    """Greatest ratio of gradient norm to weight norm, per unit."""
    eps: PositiveFloat = 1e-3
    """Floor of the weight norm."""
    exclude_last_linear: bool = True
    """Leave out the last Linear layer, as the paper does."""


class Pruning(Section):
    """How the trained network is pruned and looked at."""

    sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98), min_length=1
    )
    """Fractions of the prunable weights to remove; the dense network is always measured too."""
    score: Literal["magnitude", "layer_magnitude", "random"] = "magnitude"
    """What is small."""
    scope: Literal["global", "layer", "erk"] = "global"
    """Where it is compared."""
    pattern: str = "unstructured"
    """unstructured, or N:M such as 2:4 (which fixes the sparsity)."""
    recalibrate_batches: PositiveInt = 20
    """Training batches for re-estimating BatchNorm statistics."""
    controls: bool = True
    """Also prune the baseline (sgd, adamw) at random and per layer, as controls."""

    @field_validator("sparsities")
    @classmethod
    def _distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a sparsity occurs twice")
        return value


class Recipe(Section):
    """Everything a training run needs."""

    name: str = "digits"
    """Name of the study."""
    method: str = "sgd"
    """How to train: see `trimtab list methods`."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Seed of weights, order, augmentation and draws."""
    epochs: PositiveInt = 20
    """Passes over the training images."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """Base optimizer of the methods that do not name one."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Of the cross-entropy."""
    dice_weight: float = Field(default=0.5, ge=0, le=1)
    """Segmentation: share of the soft Dice loss, the rest is cross-entropy."""
    transforms: tuple[str, ...] = ()
    """Gradient transforms in their order, after a penalty: autoscale, zscore, centralize, adaptive_clip. One word such as
    centralize+adaptive_clip, or none, is read too."""
    clip_norm: PositiveFloat | None = None
    """Clip the global norm of the final gradient: after penalty and transforms, once per step."""
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
    track: tuple[str, ...] = ()
    """Watch the gradients as they come (before penalty and transforms), and on request weights, updates and the curvature of
    the loss: gradients,weights,updates,curvature."""
    track_every: PositiveInt = 10
    """Optimizer steps between tracked ones."""
    track_curvature_every: PositiveInt = 1
    """Epochs between measurements of the curvature."""
    track_curvature_batch: PositiveInt = 1024
    """Training images on which the curvature is measured."""
    data: Data = Data()
    model: Model = Model()
    sgd: SGD = SGD()
    adamw: AdamW = AdamW()
    schedule: Schedule = Schedule()
    var: Var = Var()
    l1: L1 = L1()
    hoyer: Hoyer = Hoyer()
    sam: Sam = Sam()
    asam: Asam = Asam()
    cram: Cram = Cram()
    autoscale: Autoscale = Autoscale()
    zscore: ZScore = ZScore()
    centralize: Centralize = Centralize()
    adaptive_clip: AdaptiveClip = AdaptiveClip()
    precision: Precision = Precision()
    pruning: Pruning = Pruning()

    @field_validator("method")
    @classmethod
    def _known_method(cls, value: str) -> str:
        return check_method(value)

    @field_validator("precision", mode="before")
    @classmethod
    def _autocast_word(cls, value: Any) -> Any:
        """`bf16` stands for `{autocast: bf16}`."""
        return {"autocast": value} if isinstance(value, str) else value

    @field_validator("transforms", "track", mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        """`none`, `a+b` and `a,b` as lists, since a flag and `--vary` take one word for a value."""
        words = [value] if isinstance(value, str) else value
        if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
            return value
        parts = [part.strip() for word in words for part in word.replace("+", ",").split(",")]
        return () if parts == ["none"] else tuple(parts)

    @field_validator("transforms")
    @classmethod
    def _known_transforms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known(value, TRANSFORMS, "gradient transform")

    @field_validator("track")
    @classmethod
    def _known_quantities(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return _known(value, TRACKED, "tracked quantity")

    def write(self, path: Path) -> None:
        """Write as YAML, atomically."""
        write_text(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The recipe as YAML text that `load_recipe` reads back to an equal recipe."""
        text: str = yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)
        return text

    def with_settings(self, settings: Mapping[str, Any]) -> Recipe:
        """A recipe with dotted fields replaced, checked like a file.

        Example:
            >>> Recipe().with_settings({"var.strength": 1e-4}).var.strength
            0.0001
        """
        data = self.model_dump()
        for dotted, value in settings.items():
            *parents, leaf = dotted.split(".")
            target: Any = data
            for part in parents:
                target = target.get(part, {}) if isinstance(target, dict) else {}
            if not isinstance(target, dict) or (leaf not in target and parents[-1:] != ["arguments"]):
                raise ValueError(f"no recipe field {dotted!r}{_nearest(dotted, _all_fields(Recipe))}")
            target[leaf] = value
        return _checked(data, "settings")


def _known(names: tuple[str, ...], allowed: tuple[str, ...], what: str) -> tuple[str, ...]:
    """`names` when each is allowed and none occurs twice; ValueError otherwise."""
    for name in names:
        if name not in allowed:
            raise ValueError(f"unknown {what} {name!r}; allowed are {', '.join(allowed)}")
    if len(set(names)) < len(names):
        raise ValueError(f"a {what} occurs twice")
    return names


def _all_fields(section: type[BaseModel], prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, info in section.model_fields.items():
        names.append(prefix + name)
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel):
            names += _all_fields(info.annotation, f"{prefix}{name}.")
    return names


def _nearest(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=3, cutoff=0.5)
    if not close:  # a field given without its section, or the other way round
        close = [field for field in allowed if field.split(".")[-1] == name.split(".")[-1]][:3]
    return f"; did you mean {' or '.join(close)}?" if close else f"; fields are {', '.join(allowed)}"


def problems(error: ValidationError, section: str = "") -> str:
    """What is wrong with a recipe, or with its part `section`, in one line."""
    found = []
    items = error.errors()
    for item in items:
        place = item["loc"]
        if any(len(other["loc"]) > len(place) and other["loc"][: len(place)] == place for other in items):
            continue  # a list that is too short for its items' own mistakes
        dotted = ".".join(str(part) for part in (*filter(None, [section]), *place))
        if item["type"] == "extra_forbidden":
            found.append(f"unknown field {dotted!r}{_nearest(dotted, _all_fields(Recipe))}")
        else:
            found.append(f"{dotted}: {shortened(item['msg'], 500)} (got {shortened(repr(item.get('input')), 200)})")
    return shortened("; ".join(found))


def _checked(data: Any, where: str) -> Recipe:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: a recipe is a mapping of fields, got {type(data).__name__}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise ValueError(f"{where}: {problems(error)}") from None


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes inside the package, each with its first comment line."""
    folder = resources.files("trimtab.runs") / "recipes"
    found = {}
    for item in sorted(folder.iterdir(), key=lambda item: item.name):
        if item.name.endswith(".yaml"):
            first = item.read_text(encoding="utf-8").splitlines()[0]
            found[item.name.removesuffix(".yaml")] = first.removeprefix("#").strip()
    return found


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
        names = list(shipped_recipes())
        close = difflib.get_close_matches(str(source), names, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}?" if close else f"shipped ones are {', '.join(names)}"
        raise ValueError(f"no recipe {str(source)!r}: neither a YAML file nor a shipped name; {hint}")
    with named(where, "is not readable as YAML"):
        data = yaml.safe_load(text)
        check_expansion(data)
    return _checked({} if data is None else data, where)


__all__ = ["METHODS", "Recipe", "load_recipe", "shipped_recipes"]

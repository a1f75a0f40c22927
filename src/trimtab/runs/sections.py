"""The sections of a recipe that are no levers': data, network, schedule, groups of parameters, pruning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator

from trimtab.datasets.augment import Augment
from trimtab.runs.section import Section


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
    augment: Augment = "none"
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


class Schedule(Section):
    """Learning rate over the run."""

    name: Literal["cosine", "linear", "constant", "step"] = "cosine"
    """Shape; cosine and linear fall to 0 with the last step."""
    warmup_epochs: float = Field(default=0, ge=0)
    """Linear rise from 1 % over so many epochs."""
    step_epochs: PositiveInt = 30
    """step: epochs between drops."""
    gamma: PositiveFloat = 0.1
    """step: factor of a drop."""


class Group(Section):
    """Parameters with rates of their own."""

    include: tuple[str, ...] = Field(min_length=1)
    """Shell patterns; a parameter's name must match one of them."""
    exclude: tuple[str, ...] = ()
    """Shell patterns; a parameter's name must match none of them."""
    lr_factor: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Times the optimizer's learning rate."""
    decay_factor: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Times the optimizer's weight decay."""
    epochs: PositiveFloat | None = None
    """Trained for so many epochs, to the end of a schedule of its own; then it stays as it is."""

    @field_validator("include", "exclude", mode="before")
    @classmethod
    def _one_word(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class Pruning(Section):
    """How the trained network is pruned and looked at."""

    sparsities: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98), min_length=1
    )
    """Fractions of the prunable weights to remove; the dense network is always measured too."""
    score: Literal["magnitude", "layer_magnitude", "random", "wanda"] = "magnitude"
    """What is small; wanda looks at training batches as well (recalibrate-batches of them)."""
    scope: Literal["global", "layer", "erk", "row"] = "global"
    """Where it is compared; row: inside each output row, as Wanda is published."""
    pattern: str = "unstructured"
    """unstructured, or N:M such as 2:4 (which fixes the sparsity)."""
    indivisible: Literal["refuse", "leave_out"] = "refuse"
    """What becomes of weights that an N:M pattern does not divide, as behind three colours: an error, or they stay dense."""
    on_collapse: Literal["warn", "keep", "raise"] = "warn"
    """Where scope global would take a whole layer while others keep some: it is named, others go instead, or an error."""
    recalibrate_batches: PositiveInt = 20
    """Training batches for re-estimating BatchNorm statistics, and for wanda."""
    finetune: int = Field(default=0, ge=0)
    """Also train each pruned network on for so many epochs, the removed weights kept at zero; 0 for not."""
    finetune_rate: PositiveFloat = 0.1
    """Learning rate at the start of fine-tuning, as a share of the recipe's; it falls by a cosine to zero."""
    bits: tuple[Annotated[int, Field(ge=1, le=16)], ...] = ()
    """Also write each of these networks as a file with so many bits for a weight, entropy-coded, and measure what it keeps: for
    the figure of quality against bytes."""
    controls: bool = True
    """Also prune the baseline (sgd, adamw) at random and per layer, as controls."""

    @field_validator("sparsities")
    @classmethod
    def _distinct(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a sparsity occurs twice")
        return value

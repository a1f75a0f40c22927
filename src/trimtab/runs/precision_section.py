"""The recipe's section `precision`: number formats of gradients, weights, momentum, activations, operands, and their levers."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationInfo, field_validator, model_validator

from trimtab.precision import (
    MX,
    Accumulator,
    Binarize,
    Block,
    Compensate,
    Keep,
    LowPrecision,
    PerChannel,
    PerTensor,
    Recipe,
    Scaling,
    ShrinkageMeter,
    named,
    recipe_named,
)
from trimtab.precision.binarize import NAME as BINARY
from trimtab.precision.quantize import OverflowPolicy
from trimtab.precision.rounding import Rounding
from trimtab.precision.scaling import Rule
from trimtab.runs.section import Section

ScalingName = Literal["none", "tensor", "channel", "block", "mx"]
ROUNDED = ("gradients", "weights", "momentum", "activations", "activation_gradients")
"""Fields that name a format."""
OF_PRODUCTS = ("matmul", "matmul_keep", "matmul_until", "matmul_accumulator", "matmul_step", "matmul_promote")
"""Fields about operands."""
READ_BY = {
    "matmul": (*OF_PRODUCTS[1:], "oscillation"),
    "matmul_accumulator": ("matmul_step", "matmul_promote"),
}
"""Fields that only count beside another."""


class Precision(Section):
    """Number formats: what training rounds, and how."""

    autocast: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Mixed precision of the forward and backward pass, by torch itself."""
    gradients: str | None = None
    """Format of the gradients that the optimizer steps with, such as e4m3, e5m2, e2m1, int4 or e3m4."""
    weights: str | None = None
    """Format of the weights that the network computes with; binary: one bit, by the lever Binarize, with a scale of its own."""
    momentum: str | None = None
    """Format of the optimizer's momentum."""
    activations: str | None = None
    """Format of what Linear and convolution layers put out."""
    activation_gradients: str | None = None
    """Format of the gradients that come back there."""
    matmul: str | None = None
    """Recipe of products: nvfp4, mxfp4, mxfp4-unbiased, quartet-ii, mxfp8, fp8-deepseek, -tensor, -delayed, bf16-operands."""
    matmul_keep: tuple[str, ...] | None = None
    """matmul: patterns of layers that stay in full precision, in place of the recipe's own; none keeps none."""
    matmul_until: float = Field(default=1.0, gt=0, le=1)
    """matmul: share of the training after which products are in full precision."""
    matmul_accumulator: str | None = None
    """matmul: format of the sums inside the products, such as e8m13; default float32."""
    matmul_step: PositiveInt = 32
    """matmul: products summed at once before the sum is rounded."""
    matmul_promote: int = Field(default=128, ge=0)
    """matmul: products after which a sum goes on in float32; 0 never."""
    oscillation: int = Field(default=0, ge=0)
    """matmul: meter the weights that go back and forth within so many steps; 0 does not."""
    rounding: Rounding = "nearest"
    """How numbers between two of the format are rounded."""
    overflow: OverflowPolicy = "saturate"
    """What numbers beyond the format's largest become."""
    scaling: ScalingName = "none"
    """What shares a scale that brings it into the format's range: nothing, tensors, channels, blocks, blocks as in MX."""
    scaling_rule: Rule | None = None
    """How the scale is made; default absmax, floor for mx."""
    block_size: PositiveInt = 32
    """block, mx: entries that share a scale."""
    master: bool = True
    """Let the optimizer step weights kept in full, of which the network sees the rounded ones."""
    before_reduce: bool = False
    """Round each process's gradients before they are averaged, as quantised communication does."""
    compensate: Literal["none", "global", "tensor"] = "none"
    """Divide the step by the running shrinkage: of all gradients together, or of each tensor."""
    meter_every: int = Field(default=10, ge=0)
    """Optimizer steps between measured ones; 0 measures nothing."""

    @field_validator(*ROUNDED)
    @classmethod
    def _known_format(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None or value == "none":
            return None
        if value == BINARY and info.field_name != "weights":
            raise ValueError(f"{BINARY} is a format of weights alone, got it for {info.field_name}")
        if value != BINARY:
            named(value)
        return value

    @field_validator("matmul")
    @classmethod
    def _known_recipe(cls, value: str | None) -> str | None:
        if value is None or value == "none":
            return None
        recipe_named(value)
        return value

    @field_validator("matmul_accumulator")
    @classmethod
    def _known_sums(cls, value: str | None) -> str | None:
        if value is None or value == "none":
            return None
        named(value)
        return value

    @field_validator("matmul_keep", mode="before")
    @classmethod
    def _patterns(cls, value: Any) -> Any:
        """`none`, and several in one word, since a flag and `--vary` take one."""
        if isinstance(value, str):
            value = [each.strip() for each in value.split(",")]
        return [] if value in (["none"], ("none",)) else value

    @model_validator(mode="after")
    def _consistent(self) -> Precision:
        for field, given in (("before_reduce", self.before_reduce), ("compensate", self.compensate != "none")):
            if given and self.gradients is None:
                raise ValueError(f"{field} is about rounded gradients; give precision.gradients a format")
        if self.weights == BINARY and (self.rounding, self.scaling, self.master) != ("nearest", "none", True):
            raise ValueError(
                f"weights: {BINARY} take signs times their mean magnitude, the full ones behind them; leave rounding, scaling "
                "and master as they are"
            )
        scaling_of(self)
        recipe_of(self)
        self.check_read(self.model_fields_set)
        return self

    def check_read(self, given: Collection[str]) -> None:
        """ValueError where fields were given of something that was not; `none`, as in a comparison, is given."""
        for parent, fields in READ_BY.items():
            if parent in given or getattr(self, parent) is not None:
                continue
            idle = [
                name
                for name in fields
                if name in given and getattr(self, name) != type(self).model_fields[name].default
            ]
            if idle:
                raise ValueError(
                    f"{', '.join(idle)}: about precision.{parent}, which is not given, so that nothing would read it (where a "
                    f"comparison varies it, say {parent} none)"
                )

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded."""
        return self.matmul is not None or any(getattr(self, field) is not None for field in ROUNDED)


def recipe_of(section: Precision) -> Recipe | None:
    """The recipe of the products that the section describes.

    Example:
        >>> recipe_of(Precision(matmul="mxfp4", matmul_keep=("fc",), matmul_until=0.9)).until
        0.9
    """
    accumulator = None
    if section.matmul_accumulator is not None:
        accumulator = Accumulator(section.matmul_accumulator, section.matmul_step, section.matmul_promote or None)
    if section.matmul is None:
        return None
    recipe = recipe_named(section.matmul)
    if section.matmul_keep is not None:
        recipe = recipe.replace(keep=Keep(section.matmul_keep))
    return recipe.replace(until=section.matmul_until, accumulator=accumulator)


def scaling_of(section: Precision) -> Scaling | None:
    """The scaling that the section names."""
    if section.scaling == "none":
        if section.scaling_rule is not None:
            raise ValueError("scaling_rule needs a scaling: tensor, channel, block or mx")
        return None
    rule: Rule = section.scaling_rule or ("floor" if section.scaling == "mx" else "absmax")
    match section.scaling:
        case "tensor":
            return PerTensor(rule=rule)
        case "channel":
            return PerChannel(rule=rule)
        case "block":
            return Block(section.block_size, rule=rule)
    return MX(section.block_size, rule=rule)


def build_precision(
    section: Precision, seed: int, folder: Path | None, total_steps: int | None = None
) -> tuple[LowPrecision | Compensate | Binarize, ...]:
    """The levers of the section: the rounding, where asked for the compensation behind it, and binary weights.

    Args:
        section: what to round; none where nothing is.
        seed: of stochastic rounding.
        folder: the run folder for `shrinkage.parquet/`; None measures nothing.
        total_steps: optimizer steps of the whole run, along which the estimator of binary weights changes, and near whose end
            products may be in full precision.
    """
    if not section.rounds:
        return ()
    binary = (Binarize(total_steps=total_steps),) if section.weights == BINARY else ()
    if binary and not any(getattr(section, field) for field in ("matmul", *ROUNDED) if field != "weights"):
        return binary
    metered = folder is not None and section.meter_every > 0
    recipe = recipe_of(section)
    lever = LowPrecision(
        section.gradients,
        None if binary else section.weights,
        section.momentum,
        (section.activations, section.activation_gradients),
        matmul=recipe,
        total_steps=total_steps if recipe is not None and recipe.until < 1 else None,
        oscillation=section.oscillation if metered and recipe is not None else 0,
        rounding=section.rounding,
        overflow=section.overflow,
        scaling=scaling_of(section),
        master=section.master,
        before_reduce=section.before_reduce,
        seed=seed,
        meter=ShrinkageMeter(section.meter_every, folder, overwrite=True) if metered else None,
    )
    if section.compensate == "none":
        return (lever, *binary)
    return (lever, Compensate(lever, granularity=section.compensate), *binary)

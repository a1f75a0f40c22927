"""The recipes that have a name, each as its source describes it; what a source leaves open is ours and said so."""

from __future__ import annotations

from collections.abc import Callable

from trimtab.checks import hint
from trimtab.precision.blocks import MX, Block
from trimtab.precision.delayed import Delayed
from trimtab.precision.eden import MSEden
from trimtab.precision.nvfp4 import NVFP4
from trimtab.precision.recipes import Keep, Operand, Product, Recipe
from trimtab.precision.scaling import PerTensor

HEADS = ("*head", "*router*", "*gate")
"""Output layers and routers, which the sources of language models keep in high precision, by the names they commonly have
[ours]."""

_BF16 = Operand("bf16")
_MXFP8 = Operand("e4m3", MX(rule="power_of_two"))
_MXFP4, _MXFP4_RANDOM = Operand("e2m1", MX()), Operand("e2m1", MX(unbiased=True), "stochastic")
_NVFP4, _NVFP4_RANDOM = Operand("e2m1", NVFP4()), Operand("e2m1", NVFP4(), "stochastic")
_FOUR_OVER_SIX, _EDEN = Operand("e2m1", NVFP4(four_over_six=True)), Operand("e2m1", MSEden())
_NVFP4_WEIGHT = Operand("e2m1", NVFP4(rows=16))
_LINES, _TILES = Operand("e4m3", Block(128)), Operand("e4m3", Block(128, rows=128))
_FP8, _FP8_GRADIENT = Operand("e4m3", PerTensor()), Operand("e5m2", PerTensor())
_LATE, _LATE_GRADIENT = Operand("e4m3", Delayed()), Operand("e5m2", Delayed())

RECIPES: dict[str, Recipe] = {
    each.name: each
    for each in (
        Recipe(
            "bf16-operands", (_BF16, _BF16), (_BF16, _BF16), (_BF16, _BF16), Keep(HEADS),
            source="arXiv 1905.12322: bfloat16 operands, float32 sums; what the others are measured against",
        ),
        Recipe(
            "nvfp4", (_NVFP4, _NVFP4_WEIGHT), (_NVFP4_RANDOM, _NVFP4_WEIGHT), Product(_NVFP4_RANDOM, _NVFP4, 16),
            Keep(HEADS, first=2 / 62, last=8 / 62),
            source="arXiv 2509.25149: weights in tiles of 16 x 16, gradients rounded stochastically, a Hadamard transform of "
            "16 in the weights' gradient, the first 2 and last 8 of 62 blocks in high precision (here: that share of layers). "
            "Published scales let some block maxima saturate, so the gradients are not quite unbiased. The last part of "
            "training in high precision is left to `until`",
        ),
        Recipe(
            "quartet-ii", (_FOUR_OVER_SIX, _FOUR_OVER_SIX), Product(_EDEN, _EDEN, 128, fresh=True),
            Product(_EDEN, _EDEN, 128, fresh=True), Keep(HEADS),
            source="arXiv 2601.22813: four over six forward; MS-EDEN on both operands of the gradients' products, turned by a "
            "Hadamard transform of 128 with new signs each time",
        ),
        Recipe(
            "mxfp4", (_MXFP4, _MXFP4), (_MXFP4, _MXFP4), (_MXFP4, _MXFP4), Keep(HEADS),
            source="MX 1.0 of the Open Compute Project (arXiv 2310.10537): e2m1, blocks of 32, the floor rule, to nearest",
        ),
        Recipe(
            "mxfp4-unbiased", (_MXFP4, _MXFP4),
            Product(_MXFP4_RANDOM, _MXFP4_RANDOM, hadamard=64), Product(_MXFP4_RANDOM, _MXFP4_RANDOM, hadamard=64),
            Keep(HEADS),
            source="arXiv 2502.20586: both operands of the gradients' products times 3/4, rounded stochastically after a "
            "Hadamard transform of 64; the forward pass, bf16 there, is that of mxfp4 here [ours]",
        ),
        Recipe(
            "mxfp8", (_MXFP8, _MXFP8), (_MXFP8, _MXFP8), (_MXFP8, _MXFP8), Keep(HEADS),
            source="arXiv 2506.08027: e4m3 for all operands, blocks of 32, e8m0 scales rounded up",
        ),
        Recipe(
            "fp8-deepseek", (_LINES, _TILES), (_LINES, _TILES), (_LINES, _LINES), Keep(HEADS),
            source="arXiv 2412.19437: e4m3, activations and gradients in runs of 128, weights in tiles of 128 x 128, float32 "
            "scales. Sums are kept in float32; `Accumulator()` has the tensor cores' own",
        ),
        Recipe(
            "fp8-tensor", (_FP8, _FP8), (_FP8_GRADIENT, _FP8), (_FP8_GRADIENT, _FP8), Keep(HEADS),
            source="arXiv 2209.05433: e4m3 forward, e5m2 for gradients; one scale per tensor, from its present largest entry "
            "[ours]: fp8-delayed takes that of the steps before",
        ),
        Recipe(
            "fp8-delayed", (_LATE, _LATE), (_LATE_GRADIENT, _LATE), (_LATE_GRADIENT, _LATE), Keep(HEADS),
            source="TransformerEngine's DelayedScaling (formats of arXiv 2209.05433): e4m3 forward, e5m2 for gradients; one "
            "scale per tensor, from its largest entry in the last 1024 steps, over all ranks; what grew since saturates. The "
            "first step has its own largest entries [ours], where TransformerEngine begins with a scale of 1",
        ),
    )
}  # fmt: skip

VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "nearest": Recipe.to_nearest,
    "no-hadamard": Recipe.without_hadamard,
    "all-layers": lambda recipe: recipe.replace(keep=Keep()),
}
"""What may follow a recipe's name behind a hyphen, for ablations."""


def recipe_named(name: str | Recipe) -> Recipe:
    """The recipe called `name`; a `Recipe` comes back as it is.

    Behind a name may stand, for ablations, `-nearest` (no stochastic rounding), `-no-hadamard`, and `-all-layers` (none kept
    in full precision), in this order or another.

    Raises:
        TypeError: neither a string nor a Recipe.
        ValueError: no such recipe; the message offers the nearest names. A variant that changes nothing.

    Example:
        >>> recipe_named("mxfp8").fprop.first, recipe_named("mxfp4-all-layers").keep.names
        (Operand(e4m3, MX(rule='power_of_two', size=32, dim=-1)), ())
    """
    if isinstance(name, Recipe):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a recipe is a name or a trimtab.precision.Recipe, got {name!r}")
    key = name.strip().lower()
    recipe = RECIPES.get(key)
    if recipe is not None:
        return recipe
    for ending, change in VARIANTS.items():
        if key.endswith(f"-{ending}") and is_recipe(base := key.removesuffix(f"-{ending}")):
            plain = recipe_named(base)
            changed = change(plain)
            if changed == plain:
                raise ValueError(f"{name!r} is {base!r}: there is nothing that -{ending} would change")
            return changed.replace(name=key)
    endings = ", ".join(f"-{ending}" for ending in VARIANTS)
    raise ValueError(f"unknown recipe {name!r}; {hint(key, RECIPES, 'recipes')}; behind a name may stand {endings}")


def is_recipe(name: str) -> bool:
    """Whether the name is that of a recipe, with or without variants, and not of a number format.

    Example:
        >>> is_recipe("mxfp4-all-layers"), is_recipe("e2m1")
        (True, False)
    """
    key = name.strip().lower()
    if key in RECIPES:
        return True
    return any(key.endswith(f"-{ending}") and is_recipe(key.removesuffix(f"-{ending}")) for ending in VARIANTS)

"""What `LowPrecision` can be asked for: formats by kind of tensor, and what does not fit together."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.precision.format import Format
from trimtab.precision.recipes import Recipe

FormatOrName = str | Format
ForwardAndBackward = tuple[FormatOrName | None, FormatOrName | None]


def formats_by_kind(
    gradients: FormatOrName | None,
    weights: FormatOrName | None,
    momentum: FormatOrName | None,
    activations: FormatOrName | ForwardAndBackward | None,
) -> dict[str, FormatOrName | None]:
    """By kind of tensor."""
    forward, backward = activations if isinstance(activations, tuple) else (activations, None)
    given = {"gradients": gradients, "weights": weights, "momentum": momentum}
    return {**given, "forward": forward, "backward": backward}


def check(
    formats: dict[str, FormatOrName | None],
    recipe: Recipe | None,
    total_steps: int | None,
    oscillation: int,
    momentum_keys: Sequence[str],
    *,
    before_reduce: bool,
) -> None:
    """ValueError, TypeError for what does not fit together."""
    if recipe is None and not any(each is not None for each in formats.values()):
        raise ValueError(
            "LowPrecision rounds nothing; give gradients, weights, momentum or activations a format, or matmul a recipe"
        )
    if recipe is not None and recipe.until < 1 and total_steps is None:
        raise ValueError(f"recipe {recipe.name!r} ends after {recipe.until:g} of the training; give total_steps")
    if before_reduce and formats["gradients"] is None:
        raise ValueError("before_reduce=True rounds gradients, and gradients is None; give it a format")
    if isinstance(momentum_keys, str) or not momentum_keys:
        raise TypeError(f"momentum_keys must be a tuple of names, got {momentum_keys!r}")
    if oscillation and (recipe is None or recipe["fprop"].second is None):
        raise ValueError(
            "oscillation watches the weights that matmul rounds in the forward pass; give it such a recipe"
        )

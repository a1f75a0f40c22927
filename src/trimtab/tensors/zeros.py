"""What levers share that choose the zeros of weights while these are trained: which weights, which of their entries, errors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.parameters import Entry, Rule, Source
from trimtab.parameters.zeros import weights_for_zeros
from trimtab.tensors.selection import kth_threshold, smallest_masks


def weights_or_refusal(lever: object, parameters: Source, rule: Rule) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """The weights that a rule picks and that can hold zeros, and all others with their reasons; ValueError for none."""
    chosen, left_out = weights_for_zeros(parameters, rule)
    if not chosen:
        reasons = "; ".join(f"{entry.name}: {reason}" for entry, reason in left_out[:3])
        raise ValueError(f"{lever!r} finds nothing to prune ({reasons or 'no parameters'})")
    return chosen, left_out


def refuse_nan(lever: object, steps: int, named: Sequence[Entry], values: Sequence[Tensor]) -> None:
    """ValueError that names the first weight whose values hold NaN."""
    for entry, value in zip(named, values, strict=True):
        if bool(value.isnan().any()):
            raise ValueError(f"{entry.name} holds NaN after {steps} steps: {lever!r} cannot tell what is small")


def smallest_or_refusal(
    lever: object, steps: int, named: Sequence[Entry], values: Sequence[Tensor], count: int, *, absolute: bool = True
) -> list[Tensor]:
    """Masks that are True at exactly the `count` smallest of all values together, ties by position; ValueError for NaN."""
    try:
        (threshold,) = kth_threshold(values, [count], absolute=absolute)
    except ValueError as error:
        try:
            refuse_nan(lever, steps, named, values)
        except ValueError as named_error:
            raise named_error from None
        raise error from None
    return smallest_masks(values, threshold, absolute=absolute)


def laid_like(kept: Tensor, weight: Tensor | None) -> Tensor:
    """A copy in the memory order and on the device of the weight; where there is none, or of another shape, a plain copy."""
    if weight is None or weight.shape != kept.shape:
        return kept.clone()
    return torch.empty_like(weight, dtype=kept.dtype, requires_grad=False).copy_(kept)

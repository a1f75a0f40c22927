"""A guard for scopes that compare whole networks: no layer is pruned away while others stay."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from trimtab.parameters import Entry
from trimtab.tensors.selection import kth_threshold, smallest_masks

OnCollapse = Literal["warn", "keep", "raise"]
"""What happens where scores would take a whole layer: it goes and is named, others go instead, or an error."""
ON_COLLAPSE = ("warn", "keep", "raise")
SHARE = 0.001
"""Of each tensor's weights at least this share stays with "keep", and at least one [ours]."""


def least_kept(elements: int) -> int:
    """How many weights of a tensor stay with "keep".

    Example:
        >>> least_kept(10), least_kept(36_864)
        (1, 36)
    """
    return max(1, int(SHARE * elements))


def guarded(
    named: Sequence[Entry],
    scores: Sequence[Tensor],
    masks: list[Tensor],
    count: int,
    on_collapse: OnCollapse,
    *,
    absolute: bool,
    gone: Sequence[Tensor | None] | None = None,
) -> list[Tensor]:
    """The masks (True where a weight goes) of one comparison over several tensors, without a layer that is gone.

    Args:
        named: the weights compared.
        scores: of each, unchanged since the selection.
        masks: what the scores alone take.
        count: how many go; the same afterwards.
        on_collapse: "warn", "keep" or "raise".
        absolute: whether scores are compared by size.
        gone: of each the weights that went before and stay away, True where; none of `masks` or `count`.

    Raises:
        ValueError: a layer would be gone and `on_collapse` is "raise", or not enough weights can go with "keep".
    """
    if len(named) < 2 or count == 0:
        return masks
    before = [None] * len(masks) if gone is None else list(gone)
    lost = [0 if one is None else int(one.count_nonzero()) for one in before]
    count += sum(lost)
    floors = [least_kept(mask.numel()) if on_collapse == "keep" else 1 for mask in masks]
    floors = [min(floor, mask.numel() - away) for floor, mask, away in zip(floors, masks, lost, strict=True)]
    free = sum(mask.numel() for mask in masks) - count
    kept = [mask.numel() - int(mask.count_nonzero()) - away for mask, away in zip(masks, lost, strict=True)]
    if free == 0 or all(left >= floor for left, floor in zip(kept, floors, strict=True)):
        return masks
    names = [entry.name for entry, left, floor in zip(named, kept, floors, strict=True) if left < floor]
    listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if on_collapse == "raise":
        raise ValueError(
            f"the scores would take all weights of {listed}, while other layers keep some; nothing is changed. "
            "on_collapse='keep' takes others instead"
        )
    if on_collapse == "warn":
        warnings.warn(
            f"all weights of {listed} go, while other layers keep some: the network may be cut in two. on_collapse='keep' "
            "takes others instead, scope 'layer' or 'erk' shares the sparsity out",
            stacklevel=5,
        )
        return masks
    if sum(floors) > free:
        raise ValueError(
            f"{count:,} weights cannot go while each of {len(named)} tensors keeps {SHARE:.1%} and at least one; "
            f"{free:,} would stay, {sum(floors):,} must"
        )
    open_ = [
        (score.detach().abs() if absolute else score.detach()).clone(memory_format=torch.contiguous_format)
        for score in scores
    ]
    for score, one in zip(open_, before, strict=True):
        if one is not None:
            score.masked_fill_(one, -math.inf)
    while True:
        for score, mask, floor in zip(open_, masks, floors, strict=True):
            if mask.numel() - int(mask.count_nonzero()) < floor:
                flat = score.view(-1)
                flat[torch.sort(flat, stable=True).indices[-floor:]] = math.inf
        (threshold,) = kth_threshold(open_, [count])
        masks = smallest_masks(open_, threshold)
        if all(mask.numel() - int(mask.count_nonzero()) >= floor for mask, floor in zip(masks, floors, strict=True)):
            warnings.warn(
                f"the scores would take all weights of {listed}, or nearly: {SHARE:.1%} of each stay, and others go instead",
                stacklevel=5,
            )
            return masks

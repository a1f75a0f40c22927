"""Masks from the zeros that a model has, and masks put on another model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from trimtab.collectives import is_sharded
from trimtab.parameters import PRUNABLE, Entry, Rule, Source, entries, select
from trimtab.parameters.zeros import set_zeros_, weight_now
from trimtab.pruning.masks import by_name, check_mask


@torch.no_grad()
def masks_of(model: Source, rule: Rule | None = None) -> dict[str, Tensor]:
    """Masks from existing zeros: of every prunable weight that holds a zero, True where it is not zero.

    For a sparse network that came as a file, or was pruned by something else: its zeros as masks for `KeepMasks`, `keep_masks`,
    `apply_masks`. A weight without a zero has no mask; NaN is not zero. A weight that is computed from others (weight_norm)
    counts as the product uses it.

    Args:
        model: a model, an optimizer, or named parameters.
        rule: which weights are looked at. Default: what `one_shot` prunes.

    Raises:
        ValueError: a weight is sharded (DTensor), or no weight holds a zero.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> net.weight.data = torch.tensor([[0.0, 3.0]])
        >>> masks_of(net)
        {'weight': tensor([[False,  True]])}
    """
    chosen = select(model, PRUNABLE if rule is None else rule, computed=True).chosen
    found = {}
    for entry in chosen:
        if is_sharded(entry.parameter):
            raise ValueError(
                f"{entry.name} is sharded (DTensor); gather the model into one process before its zeros are read"
            )
        kept = weight_now(entry) != 0
        if not bool(kept.all()):
            found[entry.name] = kept
    if not found:
        raise ValueError(f"none of the {len(chosen)} prunable weights holds a zero, so there is nothing to keep")
    return found


def _fitting(model: Source, masks: Mapping[str, Tensor]) -> list[tuple[Entry, Tensor]]:
    known = by_name(entries(model))
    if strangers := [name for name in masks if name not in known]:
        raise ValueError(
            f"{len(strangers)} of {len(masks)} masks belong to no weight of the model: {', '.join(strangers[:5])}; its weights "
            f"are {', '.join(list(known)[:5])}, .."
        )
    for name, mask in masks.items():
        check_mask(name, mask, known[name].parameter)
    return [(known[name], mask) for name, mask in masks.items()]


@torch.no_grad()
def apply_masks(model: Source, masks: Mapping[str, Tensor]) -> int:
    """Set to zero in `model` what the masks remove, in place: an average of the weights (EMA), a copy, another checkpoint.

    Weights go by name; wrappers (AveragedModel, DistributedDataParallel, torch.compile) are looked through.

    Args:
        model: the model, or named parameters.
        masks: per name a bool tensor, True where the weight stays (`Pruned.masks`, a lever's `masks`, `masks_of`).

    Returns:
        How many weights were not zero before.

    Raises:
        ValueError: a mask's name or shape fits no weight, or the weight is sharded. Nothing is changed then.
        TypeError: a mask is not bool.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> apply_masks(net, {"weight": torch.tensor([[False, True]])}), float(net.weight[0, 0])
        (1, 0.0)
    """
    changed = 0
    for entry, mask in _fitting(model, masks):
        gone = ~mask.to(entry.parameter.device)
        changed += int((weight_now(entry)[gone] != 0).sum())
        set_zeros_(entry, gone)
    return changed

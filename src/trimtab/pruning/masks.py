"""Where masks lie in an optimizer's parameters, and how their weights are set to zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from trimtab.collectives import is_sharded
from trimtab.levers import innermost
from trimtab.parameters import entries, with_names


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


Pairs = list[tuple[Tensor, Tensor]]
"""A parameter, and where its weights are gone."""


def zeroing(
    optimizer: torch.optim.Optimizer, masks: Mapping[str, Tensor], model: nn.Module | None
) -> tuple[Callable[[], None], Callable[[], Pairs]]:
    """What sets masked weights to zero, and what tells where they are; raises as `keep_masks`."""
    base = innermost(optimizer)
    held = entries(base) if model is None else with_names(base, model)
    if not all(entry.named for entry in held):
        raise ValueError(
            "the optimizer's parameters have no names; pass model=... or build it from model.named_parameters()"
        )
    known = {name: entry.parameter for entry in held for name in (entry.name, *entry.aliases)}
    if strangers := [name for name in masks if name not in known]:
        raise ValueError(
            f"{len(strangers)} of {len(masks)} masks belong to no parameter of the optimizer: {_listed(strangers)}; it holds "
            f"{_listed(list(known))}. A weight that the optimizer does not hold stays as it is: leave its mask out, or give "
            "the optimizer the parameter"
        )
    pairs: list[tuple[Tensor, Tensor]] = []
    for name, mask in masks.items():
        if mask.dtype != torch.bool:
            raise TypeError(f"mask {name!r} must be bool (True = stays), got {mask.dtype}")
        if mask.shape != known[name].shape:
            raise ValueError(f"mask {name!r} has shape {tuple(mask.shape)}, its parameter {tuple(known[name].shape)}")
        if is_sharded(known[name]):
            raise ValueError(f"{name} is sharded (DTensor); a mask of the whole tensor does not fit its parts")
        pairs.append((known[name], ~mask.to(known[name].device)))

    def zero() -> None:
        with torch.no_grad():
            for parameter, gone in pairs:
                parameter.masked_fill_(gone, 0)

    def removed() -> Pairs:
        return pairs

    return zero, removed

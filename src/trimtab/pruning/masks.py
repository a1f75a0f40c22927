"""Keep pruned weights at zero while training goes on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from trimtab.collectives import is_sharded
from trimtab.levers import innermost
from trimtab.parameters import entries, with_names


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


def keep_masks(
    optimizer: torch.optim.Optimizer, masks: Mapping[str, Tensor], model: nn.Module | None = None
) -> RemovableHandle:
    """Set masked weights to zero after every step of `optimizer`; momentum would revive them otherwise.

    Args:
        optimizer: any optimizer, or one of Trimtab's wrappers.
        masks: per parameter name a bool tensor, True where the weight stays (`Pruned.masks`).
        model: gives the optimizer's parameters their names; not needed when the optimizer was built from
            `model.named_parameters()`.

    Returns:
        A handle whose `remove()` ends it.

    Raises:
        ValueError: masks name no parameter of the optimizer (each is listed), or a mask has another shape, or is
            of a sharded parameter (DTensor).
        TypeError: a mask is not a bool tensor.

    Example:
        >>> from trimtab.pruning import one_shot
        >>> net = nn.Linear(4, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        >>> handle = keep_masks(optimizer, one_shot(net, 0.5).masks, net)
        >>> net(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
        >>> int((net.weight == 0).sum())
        2
    """
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

    def zero(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        with torch.no_grad():
            for parameter, gone in pairs:
                parameter.masked_fill_(gone, 0)

    return base.register_step_post_hook(zero)

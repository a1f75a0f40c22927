"""Where masks lie in an optimizer's parameters, and how their weights are set to zero."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from trimtab.collectives import is_sharded
from trimtab.levers import innermost
from trimtab.parameters import Entry, computed_weights, entries, with_names


def _listed(names: list[str], most: int = 8) -> str:
    return ", ".join(map(repr, names[:most])) + (f" and {len(names) - most} more" if len(names) > most else "")


Pairs = list[tuple[Tensor, Tensor]]
"""A parameter, and where its weights are gone."""


def _replaced(model: nn.Module, masked: list[tuple[Entry, Tensor]]) -> list[str]:
    """Names of the masked weights that the model no longer holds."""
    held = {id(parameter) for parameter in model.parameters()}

    def there(entry: Entry) -> bool:
        parts = [entry.parameter] if entry.computed is None else entry.computed.parts.values()
        return all(id(part) in held for part in parts)

    return [entry.name for entry, _ in masked if not there(entry)]


def by_name(held: Sequence[Entry]) -> dict[str, Entry]:
    """The weights that masks can be of, under each of their names; one that is computed from others counts as the product."""
    return {name: entry for entry in computed_weights(held) for name in (entry.name, *entry.aliases)}


def check_mask(name: str, mask: Tensor, weight: Tensor) -> None:
    """That a mask is one of this weight.

    Raises:
        TypeError: it is not bool.
        ValueError: it has another shape, or the weight is sharded.
    """
    if mask.dtype != torch.bool:
        raise TypeError(f"mask {name!r} must be bool (True = stays), got {mask.dtype}")
    if mask.shape != weight.shape:
        raise ValueError(f"mask {name!r} has shape {tuple(mask.shape)}, its parameter {tuple(weight.shape)}")
    if is_sharded(weight):
        raise ValueError(f"{name} is sharded (DTensor); a mask of the whole tensor does not fit its parts")


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
    known = by_name(held)
    if strangers := [name for name in masks if name not in known]:
        raise ValueError(
            f"{len(strangers)} of {len(masks)} masks belong to no parameter of the optimizer: {_listed(strangers)}; it holds "
            f"{_listed(list(known))}. A weight that the optimizer does not hold stays as it is: leave its mask out, or give "
            "the optimizer the parameter; a weight that is computed from others (weight_norm) needs model=..."
        )
    masked: list[tuple[Entry, Tensor]] = []
    alive: list[str] = []
    for name, mask in masks.items():
        weight = known[name].parameter
        check_mask(name, mask, weight)
        gone = ~mask.to(weight.device)
        if bool(weight.detach().masked_fill(~gone, 0).count_nonzero()):
            alive.append(name)
        masked.append((known[name], gone))
    if alive:
        warnings.warn(
            f"{len(alive)} mask(s) remove weights that are not zero now: {_listed(alive)}. The network was not pruned with "
            "them, or its weights were replaced or put back since; the next step sets them to zero",
            stacklevel=5,
        )

    @torch.no_grad()
    def zero() -> None:
        if model is not None and (ended := _replaced(model, masked)):
            masked[:] = [pair for pair in masked if pair[0].name not in ended]
            warnings.warn(
                f"{_listed(ended)}: replaced in {type(model).__name__} since the masks were put on; the masks of what is no "
                "longer there end here. Prune the new weights and put masks on again",
                stacklevel=2,
            )
        for entry, gone in masked:
            if entry.computed is None:
                entry.parameter.masked_fill_(gone, 0)
            else:
                entry.computed.keep_(~gone)

    def removed() -> Pairs:
        pairs: Pairs = []
        for entry, gone in masked:
            pairs += [(entry.parameter, gone)] if entry.computed is None else entry.computed.gone(~gone)
        return pairs

    return zero, removed

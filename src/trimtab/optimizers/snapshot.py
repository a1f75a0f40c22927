"""A training run as it was: weights, buffers, optimizer, levers, random numbers; kept in memory and put back in place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.levers import Lever
from trimtab.levers.protocol import observes
from trimtab.optimizers.second_pass import RandomState
from trimtab.optimizers.wrapper import wrapper_around
from trimtab.parameters import Entry

State = dict[str, Any]


def buffers_of(model: nn.Module | None) -> dict[str, Tensor]:
    """The buffers by name: running statistics and what else a forward pass may move."""
    return {} if model is None else dict(model.named_buffers())


def put_back(places: Mapping[str, Tensor], kept: Mapping[str, Tensor]) -> None:
    """Copy what was kept into the tensors of the same names."""
    with torch.no_grad():
        for name, place in places.items():
            if name in kept:
                place.copy_(kept[name])


def _acting(levers: Sequence[Lever], but: Lever) -> list[Lever]:
    return [lever for lever in levers if lever is not but and not observes(lever)]


def take(
    step: int,
    parameters: Sequence[Entry],
    model: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    levers: Sequence[Lever],
    but: Lever,
) -> State:
    """All of it, of plain tensors and values, so that it can be saved.

    Args:
        step: which step it is before.
        parameters: whose weights.
        model: whose buffers.
        optimizer: whose state, and that of a wrapper around it (CrAM's draws); its rates and other settings stay with the loop
            that sets them.
        levers: whose states, of those that do not only observe.
        but: the lever that keeps it.
    """
    devices = {entry.parameter.device for entry in parameters}
    wrapper = wrapper_around(optimizer)
    around = (
        {} if wrapper is None else {k: v for k, v in wrapper.own_state().items() if k != "skipped"}
    )  # which were skipped
    return {
        "step": step,
        "weights": {entry.name: entry.parameter.detach().clone() for entry in parameters},
        "buffers": {name: buffer.detach().clone() for name, buffer in buffers_of(model).items()},
        "optimizer": copy.deepcopy({k: v for k, v in optimizer.state_dict().items() if k != "param_groups"}),
        "wrapper": copy.deepcopy(around),
        "levers": [copy.deepcopy(lever.state_dict()) for lever in _acting(levers, but)],
        "random": RandomState(devices).as_dict(),
    }


@torch.no_grad()
def restore(
    kept: State,
    parameters: Sequence[Entry],
    model: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    levers: Sequence[Lever],
    but: Lever,
) -> None:
    """Put back what `take` kept; it stays as it is, to be put back again."""
    put_back({entry.name: entry.parameter.data for entry in parameters}, kept["weights"])
    put_back(buffers_of(model), kept["buffers"])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({**copy.deepcopy(kept["optimizer"]), "param_groups": groups})
    wrapper = wrapper_around(optimizer)
    if wrapper is not None and kept.get("wrapper"):
        wrapper.load_own_state(copy.deepcopy(kept["wrapper"]))
    for lever, state in zip(_acting(levers, but), kept["levers"], strict=True):
        lever.load_state_dict(copy.deepcopy(state))
    RandomState.from_dict(kept["random"]).restore()

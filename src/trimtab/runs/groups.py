"""Parameters with rates of their own: the groups of a recipe, by name patterns."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from trimtab.runs.sections import Group

KEY = "group"
"""Where an optimizer's group says which of the recipe's groups it is."""


def grouped(model: nn.Module, groups: Mapping[str, Group]) -> list[Any]:
    """The trained parameters of `model` for an optimizer's constructor: those of no group first, then group by group.

    A parameter belongs to the first group that takes its name. Without groups it is the plain list.

    Raises:
        ValueError: a group takes no parameter.

    Example:
        >>> net = nn.Linear(2, 1)
        >>> [item["group"] for item in grouped(net, {"biases": Group(include=("*bias",))})]
        ['', 'biases']
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if not groups:
        return list(trained.values())
    found: dict[str, list[nn.Parameter]] = {"": [], **{name: [] for name in groups}}
    for name, parameter in trained.items():
        found[next((label for label, group in groups.items() if _takes(group, name)), "")].append(parameter)
    for label in groups:
        if not found[label]:
            raise ValueError(
                f"groups.{label} takes no trained parameter: {list(groups[label].include)} "
                f"without {list(groups[label].exclude)}, of {', '.join(list(trained)[:8])}, ..."
            )
    return [{"params": parameters, KEY: label} for label, parameters in found.items() if parameters]


def _takes(group: Group, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in group.include) and not any(
        fnmatchcase(name, pattern) for pattern in group.exclude
    )


def scale_rates(optimizer: torch.optim.Optimizer, groups: Mapping[str, Group]) -> None:
    """Multiply learning rate and decay of the optimizer's groups by the factors of the recipe's."""
    for group in optimizer.param_groups:
        own = groups.get(group.get(KEY, ""))
        if own is not None:
            group["lr"] *= own.lr_factor
            group["weight_decay"] *= own.decay_factor


def end_of(group: Mapping[str, Any], groups: Mapping[str, Group], epochs: int) -> float:
    """Epochs after which an optimizer's group is no longer trained."""
    own = groups.get(group.get(KEY, ""))
    return epochs if own is None or own.epochs is None else min(own.epochs, epochs)

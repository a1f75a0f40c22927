"""A sparsity for each layer, by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from trimtab.checks import below_one
from trimtab.parameters import Entry

Sparsity = float | Mapping[str, float]
"""One fraction for all, or one for each shell pattern of names; the first pattern that matches a name holds."""


def by_layer(chosen: Sequence[Entry], sparsity: Mapping[str, float]) -> list[float]:
    """The fraction that goes of each chosen weight; 0 where no pattern matches its name.

    Raises:
        ValueError: a fraction out of [0, 1), a pattern that matches none of the weights, or no pattern.

    Example:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
        >>> from trimtab.parameters import PRUNABLE, select
        >>> by_layer(select(net, PRUNABLE).chosen, {"0.*": 0.5})
        [0.5, 0.0]
    """
    if not sparsity:
        raise ValueError("sparsity is an empty mapping: name at least one pattern of weights")
    wanted = {pattern: below_one(f"sparsity of {pattern!r}", share) for pattern, share in sparsity.items()}
    names = [(entry.name, *entry.aliases) for entry in chosen]
    for pattern in wanted:
        if not any(fnmatchcase(name, pattern) for known in names for name in known):
            raise ValueError(
                f"the sparsity of {pattern!r} matches none of the {len(chosen)} prunable weights, such as {chosen[0].name}"
            )
    return [
        next((share for pattern, share in wanted.items() if any(fnmatchcase(name, pattern) for name in known)), 0.0)
        for known in names
    ]

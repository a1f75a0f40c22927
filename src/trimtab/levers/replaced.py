"""Parameters that a model no longer holds."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch import nn

from trimtab.collectives import is_sharded
from trimtab.parameters import Entry, unwrapped


class Whereabouts:
    """Where the parameters lie in a model, so that one that is replaced is noticed at the price of a few look-ups per layer."""

    def __init__(self, model: nn.Module, entries: Sequence[Entry]) -> None:
        self._model = model
        watched = {id(entry.parameter) for entry in entries if not is_sharded(entry.parameter)}
        self._links: list[tuple[dict[str, Any], str, object]] = []
        for module in unwrapped(model).modules():
            self._links += [
                (module._modules, key, child) for key, child in module._modules.items() if child is not None
            ]
            held = module._parameters.items()
            self._links += [(module._parameters, key, value) for key, value in held if id(value) in watched]

    def moved(self) -> bool:
        """Whether a module or parameter is no longer where it was."""
        return any(table.get(key) is not held for table, key, held in self._links)

    def orphans(self, entries: Sequence[Entry]) -> list[Entry]:
        """The entries whose parameter the model does not hold any more."""
        present = {id(parameter) for parameter in unwrapped(self._model).parameters()}
        return [entry for entry in entries if id(entry.parameter) not in present and not is_sharded(entry.parameter)]


def warn_of_orphans(orphans: Sequence[Entry], model: nn.Module) -> None:
    """Say which parameters the optimizer steps that the model has replaced."""
    names = ", ".join(entry.name for entry in orphans[:3]) + (
        f" and {len(orphans) - 3} more" if len(orphans) > 3 else ""
    )
    warnings.warn(
        f"{type(model).__name__} no longer holds {len(orphans)} parameter(s) that the optimizer steps and the levers act on: "
        f"{names}. They were replaced after attach; build the optimizer from the new parameters and attach again",
        stacklevel=2,
    )

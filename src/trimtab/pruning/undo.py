"""The way back from a pruned state."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trimtab.parameters.reparametrised import Reparametrised

Saved = list[tuple[Tensor, Tensor]]
"""Tensors, each with a copy of its values."""


@torch.no_grad()
def put_back(saved: Saved) -> None:
    """Copy the values back, in place."""
    for tensor, values in saved:
        tensor.copy_(values)


@dataclass(eq=False)
class Undo:
    """Puts the dense weights back into the model that was pruned.

    Attributes:
        model: the model.
        names: of the plain weights, by id.
        saved: plain weights and their values.
        computed: name, what computes the weight, and what its `restore_` needs.
    """

    model: nn.Module
    names: dict[int, str]
    saved: Saved
    computed: list[tuple[str, Reparametrised, Saved]]

    def __call__(self) -> None:
        """Put back what the model still holds; say which weights were replaced since.

        Raises:
            RuntimeError: the model holds none of them any more.
        """
        held = {id(parameter) for parameter in self.model.parameters()}
        gone = [self.names[id(tensor)] for tensor, _ in self.saved if id(tensor) not in held]
        gone += [name for name, weight, _ in self.computed if not held >= {id(part) for part in weight.parts.values()}]
        if len(gone) == len(self.saved) + len(self.computed):
            raise RuntimeError(
                f"none of the pruned weights ({', '.join(gone[:5])}) is a parameter of {type(self.model).__name__} any more: "
                "they were replaced since, and undo() would change tensors that nobody uses"
            )
        put_back([(tensor, values) for tensor, values in self.saved if id(tensor) in held])
        for name, weight, saved in self.computed:
            if name not in gone:
                weight.restore_(saved)
        if gone:
            warnings.warn(
                f"undo() put the others back, but {len(gone)} pruned weight(s) were replaced in {type(self.model).__name__} "
                f"since: {', '.join(gone[:5])}{' and more' if len(gone) > 5 else ''}",
                stacklevel=3,
            )

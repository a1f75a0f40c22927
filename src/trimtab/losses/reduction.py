"""How the losses of examples become one number, as torch's cross-entropy does it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trimtab.checks import one_of

Reduction = Literal["mean", "sum", "none"]
REDUCTIONS = ("mean", "sum", "none")


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Logits of shape (examples, classes, ...) with classes as targets of shape (examples, ...).

    Raises:
        ValueError: the shapes do not fit.
        TypeError: targets are no whole numbers.
    """
    if targets.is_floating_point() or targets.is_complex():
        raise TypeError(f"targets must be classes (whole numbers), got {targets.dtype}: probabilities are not taken")
    if logits.ndim < 2 or targets.shape != logits.shape[:1] + logits.shape[2:]:
        raise ValueError(
            f"logits must be of shape (examples, classes, ...) and targets of the same without classes, got "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}"
        )


def reduced(losses: Tensor, kept: Tensor, reduction: str) -> Tensor:
    """The losses of those kept, joined; with "none" 0 for the others.

    Example:
        >>> reduced(torch.tensor([1.0, 5.0]), torch.tensor([True, False]), "mean")
        tensor(1.)
    """
    one_of("reduction", reduction, REDUCTIONS)
    losses = torch.where(kept, losses, 0)
    if reduction == "none":
        return losses
    return losses.sum() if reduction == "sum" else losses.sum() / kept.sum()

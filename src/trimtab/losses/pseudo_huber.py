"""Pseudo-Huber: squared near zero, a distance far from it."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.checks import one_of, positive
from trimtab.losses.reduction import REDUCTIONS, Reduction


def pseudo_huber(inputs: Tensor, targets: Tensor, *, c: float = 0.00054, reduction: Reduction = "mean") -> Tensor:
    """`(sqrt(||x - y||^2 + c_d^2) - c_d) / d` of each example, `c_d = c d`, d the number of its elements.

    A far-off example has a bounded gradient, where a squared error's grows with the distance: outliers count less, as
    consistency and rectified-flow training wants it.

    Args:
        inputs, targets: shape (examples, ...).
        c: above 0. Default 0.00054 (authors' code; the consistency paper's `0.00054 sqrt(d)` is not used there).
        reduction: "mean" (default), "sum" or "none" (shape (examples,)).

    Raises:
        ValueError: shapes differ, `c` is not above 0, or an unknown word.

    Reference: Lee et al., arXiv 2405.20320; Song and Dhariwal, arXiv 2310.14189.

    Example:
        >>> pseudo_huber(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), c=1e-9)  # the distance 5, by 2 elements
        tensor(2.5000)
    """
    positive("c", c)
    one_of("reduction", reduction, REDUCTIONS)
    if inputs.shape != targets.shape or inputs.ndim < 2:
        raise ValueError(
            f"inputs and targets must be of one shape (examples, ...), got {tuple(inputs.shape)} and {tuple(targets.shape)}"
        )
    wide = torch.promote_types(inputs.dtype, torch.float32)
    squared = (inputs.to(wide) - targets.to(wide)).flatten(1).square()
    elements = squared.shape[1]
    bend = c * elements
    total = squared.sum(1)
    found = total / ((total + bend**2).sqrt() + bend) / elements  # without cancellation near zero
    if reduction == "none":
        return found
    return found.sum() if reduction == "sum" else found.mean()

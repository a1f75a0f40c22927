"""Align two paths through a network, a full and a sparse one (SSA, arXiv 2511.20102)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from trimtab.checks import non_negative


def align(full: Tensor | Sequence[Tensor], sparse: Tensor | Sequence[Tensor], weight: float = 10.0) -> Tensor:
    """`weight (SmoothL1(full, sg(sparse)) + SmoothL1(sg(full), sparse))`, the mean over layers; shape ().

    Each of the two outputs is drawn to the other, which is taken as it is (sg: no gradient): the sparse path learns what the
    full one says, and the full one to say what the sparse one can. In the paper the outputs of full and sparse attention in
    each layer, where a coin (p = 1/2) decides at each step which goes on to the next layer; for pruned and dense paths alike.

    Args:
        full, sparse: outputs of one layer, or of each layer in the same order, of equal shapes.
        weight: 0 or more. Default 10 (paper).

    Raises:
        ValueError: no layer, another number of layers or other shapes on the two sides, a weight out of range.

    Source: arXiv 2511.20102.

    Example:
        >>> full, sparse = torch.tensor([3.0], requires_grad=True), torch.tensor([1.0], requires_grad=True)
        >>> loss = align(full, sparse, weight=1.0)
        >>> loss.backward()
        >>> loss.item(), full.grad, sparse.grad
        (3.0, tensor([1.]), tensor([-1.]))
    """
    weight = non_negative("weight", weight)
    layers, others = ([side] if isinstance(side, Tensor) else list(side) for side in (full, sparse))
    shapes = [[tuple(layer.shape) for layer in side] for side in (layers, others)]
    if not layers or shapes[0] != shapes[1]:
        raise ValueError(f"both paths must give outputs of the same layers, got the shapes {shapes[0]} and {shapes[1]}")
    terms = [
        smooth_l1_loss(one, other.detach()) + smooth_l1_loss(other, one.detach())
        for one, other in zip(layers, others, strict=True)
    ]
    return weight * torch.stack(terms).mean()

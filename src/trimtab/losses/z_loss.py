"""Z-loss: the logarithm of softmax's denominator is held near zero, so that logits do not drift away."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from trimtab.checks import non_negative, one_of, whole
from trimtab.losses.reduction import REDUCTIONS, Reduction, check_targets, reduced


def z_loss(logits: Tensor, dim: int = -1) -> Tensor:
    """`(log sum_j e^x_j)^2` of each example, in float32 at least.

    Args:
        logits: of a real dtype.
        dim: of the classes.

    Reference: Chowdhery et al., PaLM, arXiv 2204.02311, section 5.

    Example:
        >>> z_loss(torch.zeros(1, 2))  # (ln 2)^2
        tensor([0.4805])
    """
    return torch.logsumexp(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim).square()


class ZLossCrossEntropy(nn.Module):
    """Cross-entropy with z-loss: `-log softmax(x)_y + strength * (log sum_j e^x_j)^2`.

    Cross-entropy does not see a number added to all logits; in long training they drift, and in 16 bits become coarse. The term
    holds them.

    Args:
        strength: 0 or more. Default 1e-4 (PaLM).
        reduction: "mean" (default), "sum" or "none", as in torch.
        ignore_index: targets that do not count. Default -100.

    Raises:
        ValueError: a number out of range, an unknown word, or (at the call) shapes that do not fit.
        TypeError: (at the call) targets are no classes.

    Reference: Chowdhery et al., PaLM, arXiv 2204.02311, section 5.

    Example:
        >>> loss = ZLossCrossEntropy(strength=0.5)
        >>> loss(torch.zeros(1, 2), torch.tensor([0]))  # ln 2 + (ln 2)^2 / 2
        tensor(0.9334)
    """

    def __init__(self, strength: float = 1e-4, reduction: Reduction = "mean", ignore_index: int = -100) -> None:
        super().__init__()
        self.strength = non_negative("strength", strength)
        self.reduction: Reduction = reduction
        one_of("reduction", reduction, REDUCTIONS)
        self.ignore_index = whole("ignore_index", ignore_index)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Loss of logits (examples, classes, ...) and classes (examples, ...)."""
        check_targets(logits, targets)
        plain = functional.cross_entropy(logits, targets, reduction="none", ignore_index=self.ignore_index)
        return reduced(plain + self.strength * z_loss(logits, 1), targets != self.ignore_index, self.reduction)

    def extra_repr(self) -> str:
        """Strength and reduction."""
        return f"strength={self.strength}, reduction={self.reduction!r}"

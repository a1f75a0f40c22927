"""GradientReversal: forward nothing, backward the gradient turned round."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import non_negative


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `-strength`."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return inputs.view_as(inputs)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * gradients[0], None


class GradientReversal(nn.Module):
    """Gradient reversal: `y = x`, and on the way back `dL/dx = -strength * dL/dy`.

    Between features and a classifier of what the features shall not show (a domain, a hospital): the classifier learns to tell
    it, the features learn to hide it.

    Args:
        strength: 0 or more. Default 1. May be set anew at any time (`reversal.strength = ...`), as the paper raises it
            from 0 by `2 / (1 + exp(-10 p)) - 1` with p the part of training done.

    Raises:
        ValueError: `strength` is out of range.

    Reference: Ganin and Lempitsky, arXiv 1409.7495.

    Example:
        >>> features = torch.ones(2, requires_grad=True)
        >>> GradientReversal(0.5)(features).sum().backward()
        >>> features.grad
        tensor([-0.5000, -0.5000])
    """

    def __init__(self, strength: float = 1.0) -> None:
        super().__init__()
        self.strength = non_negative("strength", strength)

    def forward(self, inputs: Tensor) -> Tensor:
        """The inputs."""
        found: Tensor = _Reversed.apply(inputs, self.strength)  # type: ignore[no-untyped-call]
        return found

    def extra_repr(self) -> str:
        """The strength."""
        return f"strength={self.strength}"

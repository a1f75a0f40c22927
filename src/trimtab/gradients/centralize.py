"""Centralize: every channel of the gradient gets mean zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.checks import flag
from trimtab.gradients.base import GradientTransform
from trimtab.gradients.channels import centre_channels_
from trimtab.parameters import Entry, Rule


class Centralize(GradientTransform):
    """Gradient Centralization: subtract from every output channel of the gradient its mean.

    `g_o <- g_o - mean(g_o)` for each index o of the output dimension: 0 for Linear and convolutions, 1 for transposed
    convolutions. Fully connected gradients are centred over their inputs, convolutions over inputs and kernel.

    Args:
        conv_only: only tensors of more than three dimensions, as the authors' option of that name. Default False.
        rule: which tensors count. Default `Rule()`: trainable, at least two dimensions, as in the authors' code.

    Raises:
        TypeError: (at the step) a chosen tensor is complex or its gradient sparse; `conv_only` is no bool.

    The authors centre the sum of gradient and L2 decay, inside SGD and before its momentum. A lever acts before the
    optimizer adds its `weight_decay`, so here the decay is not centred [ours].

    Reference: Yong et al., ECCV 2020, arXiv 2004.01461.

    Example:
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, trimtab.gradients.Centralize())
        >>> net.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> optimizer.step()
        >>> net.weight.grad
        tensor([[-0.5000,  0.5000]])
    """

    needs_axis = True

    def __init__(self, *, conv_only: bool = False, rule: Rule | None = None) -> None:
        super().__init__(rule)
        self.conv_only = flag("conv_only", conv_only)

    def settings(self) -> dict[str, Any]:
        """`conv_only`."""
        return {"conv_only": self.conv_only}

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Centre every channel."""
        least = 4 if self.conv_only else 2
        centre_channels_([entry for entry in chosen if entry.parameter.ndim >= least])

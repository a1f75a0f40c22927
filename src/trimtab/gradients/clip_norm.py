"""ClipNorm: the gradients of all tensors together are kept below a norm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import positive
from trimtab.gradients.base import EVERY_TENSOR, GradientTransform
from trimtab.parameters import Entry, Rule
from trimtab.sparse import is_sparse, stored_values
from trimtab.tensors.norms import joint_norm
from trimtab.tensors.passes import local_gradients, shift_and_scale_


class ClipNorm(GradientTransform):
    """Scale all chosen gradients by one factor so that their joint norm is at most `max_norm`.

    `N = ||(g_1, ..., g_k)||_p`, `g <- g * min(1, max_norm / (N + 1e-6))`: `torch.nn.utils.clip_grad_norm_` as a lever,
    so that its place among the others is explicit. N is of the whole tensors, also when they are sharded.

    Args:
        max_norm: greatest norm; finite, above 0, in the units of the gradient.
        norm_type: p; above 0, `math.inf` for the greatest magnitude. Default 2.
        rule: which tensors count. Default all trainable ones, `Rule(min_ndim=0)`, as in torch.

    Raises:
        ValueError: `max_norm` or `norm_type` is out of range.
        TypeError: (at the step) a chosen tensor is complex or its gradient sparse in another layout than COO.

    A sparse COO gradient counts with its stored values, each place once, and stays sparse. A norm that is not finite leaves
    all gradients as they are [ours]; torch makes all of them NaN.

    Reference: Pascanu et al., arXiv 1211.5063.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, trimtab.gradients.ClipNorm(1.0))
        >>> net.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> optimizer.step()
        >>> net.weight.grad
        tensor([[0.6000, 0.8000]])
    """

    default_rule = EVERY_TENSOR
    takes_sparse = True

    def __init__(self, max_norm: float, norm_type: float = 2.0, rule: Rule | None = None) -> None:
        super().__init__(rule)
        self.max_norm = positive("max_norm", max_norm)
        self.norm_type = math.inf if norm_type == math.inf else positive("norm_type", norm_type)
        self._norm: Tensor | None = None
        self._factor: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """`max_norm` and `norm_type`."""
        return {"max_norm": self.max_norm, "norm_type": self.norm_type}

    def signals(self) -> dict[str, Tensor]:
        """`norm`: N before clipping; `factor`: what the gradients were multiplied by."""
        if self._norm is None or self._factor is None:
            return {}
        return {"norm": self._norm, "factor": self._factor}

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Scale the gradients."""
        sparse = [entry.parameter for entry in chosen if is_sparse(entry.parameter)]
        dense = [entry for entry in chosen if not is_sparse(entry.parameter)]
        stored = [stored_values(parameter) for parameter in sparse]
        gradients = [*local_gradients(dense), *stored]
        owners = [*(entry.parameter.grad for entry in dense if entry.parameter.grad is not None), *stored]
        self._norm = joint_norm(gradients, owners, self.norm_type)
        factor = (self.max_norm / (self._norm + 1e-6)).clamp(max=1.0)
        self._factor = torch.where(torch.isfinite(self._norm), factor, 1.0)
        if self._factor.device.type != "cpu" or self._factor < 1:  # where the factor is at hand: 1 changes nothing
            shift_and_scale_(gradients, None, self._factor)

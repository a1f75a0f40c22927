"""ZScore: the gradient of every tensor, or channel, gets mean zero and standard deviation one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from trimtab.checks import one_of, positive
from trimtab.gradients.base import GradientTransform
from trimtab.gradients.channels import centre_channels_, factor_of, finite_or
from trimtab.gradients.statistics import moments_of
from trimtab.parameters import Entry, Rule
from trimtab.tensors.passes import local_gradients, shift_and_scale_
from trimtab.tensors.units import channel_axis, row_elements

Granularity = Literal["tensor", "channel"]
GRANULARITIES = ("tensor", "channel")
EPS = {"tensor": 1e-12, "channel": 1e-8}


class ZScore(GradientTransform):
    """ZNorm: centre and scale every tensor's (or channel's) gradient to standard deviation one.

    `g <- (g - mean(g)) / (std(g) + eps)`, std unbiased (division by n - 1).

    Args:
        granularity: `"tensor"` takes mean and deviation of the whole tensor, `"channel"` of each output row. Default
            `"tensor"`.
        eps: added to the deviation, in the units of the gradient. Default 1e-12 by tensor and 1e-8 by channel, the
            authors' values.
        rule: which tensors count. Default `Rule()`: trainable, at least two dimensions, as in the authors' code.

    Raises:
        ValueError: `granularity` or `eps` is out of range.
        TypeError: (at the step) a chosen tensor is complex or its gradient sparse.

    A tensor or channel of one element has no unbiased deviation and is left as it is [ours]. A gradient that is almost
    constant is divided by a tiny number: this transform amplifies, which `Autoscale` never does.

    Reference: arXiv 2408.01215.

    Example:
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(3, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, trimtab.gradients.ZScore())
        >>> net.weight.grad = torch.tensor([[1.0, 2.0, 3.0]])
        >>> optimizer.step()
        >>> net.weight.grad
        tensor([[-1.,  0.,  1.]])
    """

    def __init__(self, granularity: Granularity = "tensor", eps: float | None = None, rule: Rule | None = None) -> None:
        super().__init__(rule)
        self.granularity = one_of("granularity", granularity, GRANULARITIES)
        self.needs_axis = self.granularity == "channel"
        self.eps = EPS[granularity] if eps is None else positive("eps", eps)

    def settings(self) -> dict[str, Any]:
        """`granularity` and `eps`."""
        return {"granularity": self.granularity, "eps": self.eps}

    def _factor(self, norm: Tensor, number: int | Tensor) -> Tensor:
        """Of a centred tensor or channel: its norm and the number of its elements."""
        return 1.0 / (norm / (number - 1) ** 0.5 + self.eps)

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Normalise every gradient."""
        if self.granularity == "channel":
            centre_channels_([entry for entry in chosen if row_elements(entry, channel_axis(entry)) > 1], self._factor)
            return
        several = [entry for entry in chosen if entry.parameter.numel() > 1]
        if several:
            found = moments_of(several)
            factor = factor_of(found.squares.sqrt(), found.number, self._factor)
            shift_and_scale_(local_gradients(several), finite_or(found.mean, 0.0), factor, found.std)

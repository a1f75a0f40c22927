"""AdaGC: every tensor's gradient is clipped by the running mean of its own norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import below_one, positive, whole
from trimtab.gradients.base import EVERY_TENSOR, GradientTransform
from trimtab.gradients.memory import NumberOfEach
from trimtab.parameters import Entry, Rule
from trimtab.tensors.norms import each_norm
from trimtab.tensors.passes import gradients_of, local_gradients, shift_and_scale_


class AdaGC(GradientTransform):
    """AdaGC: no tensor's gradient may be much longer than that tensor's clipped gradients were of late.

    For tensor i with norm `n_i`, from step `start` on: `h_i = min(1, relative * gamma_i / n_i)`, `g_i <- h_i g_i`,
    `gamma_i <- decay * gamma_i + (1 - decay) * h_i n_i`. Before it all are clipped by their joint norm N,
    `h = min(1, absolute / N)`, and `gamma_i <- min(gamma_i, h n_i)`, which begins with the first norm.

    Args:
        relative: greatest ratio of a norm to its running mean; above 0. Default 1.05 (paper).
        decay: of the running mean, in [0, 1). Default 0.98 (paper).
        absolute: greatest joint norm before `start`; above 0, in the units of the gradient. Default 1.0 (paper).
        start: the step, counted from 1 for each tensor, from which its own norm clips it; 1 or more. Default 100 (paper). The
            first gradient of a tensor is always clipped by the joint norm.
        eps: least norm and least running mean in the ratio; above 0. Default 1e-8.
        rule: which tensors count. Default all trainable ones, `Rule(min_ndim=0)`, as in the paper.

    Raises:
        ValueError: a number is out of range.
        TypeError: (at the step) a chosen tensor is complex or its gradient sparse.

    A norm that is not finite leaves its tensor's gradient and memory as they are [ours]; where the joint norm is not finite,
    so do all that are clipped by it. After a gradient of 0 a running mean grows by 0.1 % a step only.

    Reference: Wang et al., arXiv 2502.11034.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, trimtab.gradients.AdaGC(start=2))
        >>> for size in (0.5, 1000.0):
        ...     net.weight.grad = size * torch.tensor([[0.6, 0.8]])
        ...     optimizer.step()
        >>> net.weight.grad
        tensor([[0.3150, 0.4200]])
    """

    default_rule = EVERY_TENSOR

    def __init__(
        self,
        relative: float = 1.05,
        decay: float = 0.98,
        absolute: float = 1.0,
        start: int = 100,
        *,
        eps: float = 1e-8,
        rule: Rule | None = None,
    ) -> None:
        super().__init__(rule)
        self.relative = positive("relative", relative)
        self.decay = below_one("decay", decay)
        self.absolute = positive("absolute", absolute)
        self.start = whole("start", start, least=1)
        self.eps = positive("eps", eps)
        self._mean, self._steps = NumberOfEach(), NumberOfEach()
        self._clipped: Tensor | None = None
        self._factor: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """All numbers of the formula."""
        names = ("relative", "decay", "absolute", "start", "eps")
        return {name: getattr(self, name) for name in names}

    def signals(self) -> dict[str, Tensor]:
        """`clipped`: share of the tensors that were clipped; `factor`: the least factor that one was multiplied by."""
        if self._clipped is None or self._factor is None:
            return {}
        return {"clipped": self._clipped, "factor": self._factor}

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Clip every gradient, and remember what is left."""
        gradients, names = local_gradients(chosen), [entry.name for entry in chosen]
        owners = gradients_of(chosen)
        norms = each_norm(gradients, owners)
        mean, steps = self._mean.read(names, norms.device), self._steps.read(names, norms.device)
        steps = steps.nan_to_num(0.0) + 1
        early = (steps < self.start) | mean.isnan()
        joint = norms.square().sum().sqrt() + self.eps
        together = torch.where(joint.isfinite(), (self.absolute / joint).clamp(max=1.0), 1.0)
        alone = (self.relative * mean.clamp(min=self.eps) / norms.clamp(min=self.eps)).clamp(max=1.0)
        usable = norms.isfinite() & (joint.isfinite() | ~early)
        factor = torch.where(usable, torch.where(early, together, alone), 1.0)
        left = norms * factor
        least, running = torch.fmin(mean, left), mean + (1 - self.decay) * (left - mean)
        self._mean.write(torch.where(usable, torch.where(early, least, running), mean))
        self._steps.write(torch.where(usable, steps, steps - 1))
        self._clipped, self._factor = (factor < 1).double().mean(), factor.min()
        if factor.device.type != "cpu" or self._factor < 1:
            shift_and_scale_(gradients, None, factor)

    def state_dict(self) -> dict[str, Any]:
        """The settings, and of every tensor by name the running mean of its norm and the steps counted."""
        return {**self.settings(), "mean": self._mean.as_dict(), "steps": self._steps.as_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state; ValueError when its settings are others."""
        self._check_settings(state, ("mean", "steps"))
        self._mean.load(state["mean"])
        self._steps.load(state["steps"])

"""AdamP: AdamW without the part of the step along weights whose scale does not matter."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.optimizers.foreach import Lists, adam_moments_, learning_rate, two_decays
from trimtab.optimizers.projected import ProjectedOptimizer, Steps


class AdamP(ProjectedOptimizer):
    """AdamP: AdamW without the part of the step along weights whose scale does not matter.

    Adam's step `u = m / (sqrt(v) / sqrt(1 - b2^t) + eps)`. For a weight of two or more dimensions, seen first by output rows,
    then as a whole: where `max |cos(g, w)| < delta / sqrt(elements of a row)`, its step becomes `u - w^ <w^, u>` with
    `w^ = w / (||w|| + eps)`, and its decay is multiplied by `wd_ratio`. Then
    `w <- (1 - lr weight_decay) w - lr / (1 - b1^t) u`. Weights before a normalisation are met so: their gradient is
    perpendicular to them, momentum is not, and would only make them longer.

    Args:
        params: parameters, groups, or (name, parameter) pairs.
        lr: learning rate, 0 or more. Default 1e-3 (authors' code).
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999).
        eps: added to the denominators; above 0. Default 1e-8.
        weight_decay: decoupled, 0 or more. Default 0.
        delta: how perpendicular a gradient must be, as above; above 0. Default 0.1 (paper).
        wd_ratio: of the decay of projected weights, in [0, 1]. Default 0.1 (paper).
        nesterov: `u` from `b1 m + (1 - b1) g`.
        foreach: None or True: all tensors together; False: one at a time.
        maximize: step up the gradient.
        model: says which axis of a weight its outputs are; without it the first (as in the authors' code).

    Raises:
        ValueError: a number out of range; (at the step) a sharded weight of two or more dimensions.
        TypeError: (at the step) a complex parameter or a sparse gradient.

    Reference: Heo et al., arXiv 2006.08217.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False))
        >>> optimizer = AdamP(net.parameters(), lr=0.1)
        >>> net(torch.ones(2, 3)).square().sum().backward()
        >>> optimizer.step()
    """

    held = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        nesterov: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        defaults = {"lr": learning_rate(lr), "betas": two_decays(betas)}
        super().__init__(
            params, defaults, model, eps=eps, weight_decay=weight_decay, delta=delta, wd_ratio=wd_ratio, nesterov=nesterov,
            foreach=foreach, maximize=maximize,
        )  # fmt: skip

    def decay_of(self, group: dict[str, Any]) -> float:
        """Decoupled, as AdamW's."""
        return float(group["lr"]) * float(group["weight_decay"])

    def steps_(self, group: dict[str, Any], step: int, grads: list[Tensor], states: Lists) -> Steps:
        """Moments brought up to date; `u` but for a factor, and the size of both."""
        first, second = states["exp_avg"], states["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        adam_moments_(first, second, grads, group["betas"])
        below, correction = list(torch._foreach_sqrt(second)), math.sqrt(1 - beta2**step)
        torch._foreach_add_(below, group["eps"] * correction)
        above = list(torch._foreach_lerp(first, grads, 1 - beta1)) if group["nesterov"] else first
        return Steps(above, below, float(group["lr"]) * correction / (1 - beta1**step))

"""SGDP: SGD with momentum without the part of the step along weights whose scale does not matter."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import below_one
from trimtab.optimizers.foreach import Lists, learning_rate
from trimtab.optimizers.projected import ProjectedOptimizer, Steps


class SGDP(ProjectedOptimizer):
    """SGDP: SGD with momentum, without the part of the step along weights whose scale does not matter.

    `b <- momentum b + (1 - dampening) g`, `u = b` (nesterov: `g + momentum b`); `u` and the decay are changed for weights of
    two or more dimensions as in `AdamP`; then `w <- (1 - lr weight_decay / (1 - momentum)) w - lr u`.

    Args:
        params: parameters, groups, or (name, parameter) pairs.
        lr: learning rate, 0 or more. Default 0.1 [ours]; the authors' code has none.
        momentum: in [0, 1). Default 0.
        dampening: of the gradient, in [0, 1). Default 0.
        weight_decay: decoupled, 0 or more. Default 0. It is divided by `1 - momentum`, so that it has the size of L2 decay.
        delta: how perpendicular a gradient must be; above 0. Default 0.1 (paper).
        wd_ratio: of the decay of projected weights, in [0, 1]. Default 0.1 (paper).
        eps: added to norms; above 0. Default 1e-8.
        nesterov: Nesterov momentum.
        foreach: None or True: all tensors together; False: one at a time.
        maximize: step up the gradient.
        model: says which axis of a weight its outputs are; without it the first (as in the authors' code).

    Raises:
        ValueError: a number out of range; (at the step) a sharded weight of two or more dimensions.
        TypeError: (at the step) a complex parameter or a sparse gradient.

    The momentum itself is not projected, as the paper has it; the package `adamp` 0.3 projects it too, by an alias.

    Reference: Heo et al., arXiv 2006.08217.

    Example:
        >>> net = nn.Linear(3, 4)
        >>> optimizer = SGDP(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    """

    held = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        eps: float = 1e-8,
        *,
        nesterov: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        defaults = {
            "lr": learning_rate(lr),
            "momentum": below_one("momentum", momentum),
            "dampening": below_one("dampening", dampening),
        }
        super().__init__(
            params, defaults, model, eps=eps, weight_decay=weight_decay, delta=delta, wd_ratio=wd_ratio, nesterov=nesterov,
            foreach=foreach, maximize=maximize,
        )  # fmt: skip

    def decay_of(self, group: dict[str, Any]) -> float:
        """Of the size of L2 decay."""
        decay: float = float(group["lr"]) * group["weight_decay"] / (1 - group["momentum"])
        return decay

    def steps_(self, group: dict[str, Any], step: int, grads: list[Tensor], states: Lists) -> Steps:
        """Momentum brought up to date."""
        buffer = states["momentum_buffer"]
        torch._foreach_mul_(buffer, group["momentum"])
        torch._foreach_add_(buffer, grads, alpha=1 - group["dampening"])
        above = list(torch._foreach_add(grads, buffer, alpha=group["momentum"])) if group["nesterov"] else buffer
        return Steps(above, None, float(group["lr"]))

"""DiffGrad: Adam whose step is damped where the gradient hardly changes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import flag, non_negative, positive
from trimtab.optimizers.foreach import ForeachOptimizer, Lists, adam_moments_, learning_rate, two_decays


class DiffGrad(ForeachOptimizer):
    """DiffGrad: every element of Adam's step is multiplied by `xi = sigmoid(|g_{t-1} - g_t|)`, between 1/2 and 1.

    With `m`, `v` Adam's moments and `g_0 = 0`:

        w <- w - lr sqrt(1 - b2^t) / (1 - b1^t) * xi m / (sqrt(v) + eps)

    Args:
        params: parameters, groups, or (name, parameter) pairs.
        lr: learning rate, 0 or more. Default 1e-3 (paper).
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999) (paper).
        eps: added to the root of v before its correction, as the authors' code does; above 0. Default 1e-8.
        weight_decay: 0 or more. Default 0. Added to the gradient before all else, to the remembered one too (authors' code).
        decoupled: take the decay off the weights instead, `w <- (1 - lr weight_decay) w`, as AdamW does [ours].
        foreach: None or True: all tensors together; False: one at a time.
        maximize: step up the gradient.

    Raises:
        ValueError: a number out of range.
        TypeError: (at the step) a complex parameter or a sparse gradient.

    Unlike Adam's, the step depends on the scale of the gradients: where they are far below 1, xi is 1/2 throughout, and this is
    Adam at half the learning rate. The remembered gradient is a copy: the first published file kept the gradient itself, whose
    difference is 0.

    Reference: Dubey et al., arXiv 1909.11015.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = DiffGrad([weight], lr=0.1)
        >>> weight.grad = torch.tensor([100.0])
        >>> optimizer.step()
        >>> weight
        Parameter containing:
        tensor([-0.1000], requires_grad=True)
    """

    held = ("exp_avg", "exp_avg_sq", "previous_grad")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        decoupled: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": learning_rate(lr),
            "betas": two_decays(betas),
            "eps": positive("eps", eps),
            "weight_decay": non_negative("weight_decay", weight_decay),
            "decoupled": flag("decoupled", decoupled),
        }
        super().__init__(params, defaults, foreach=foreach, maximize=maximize)

    def update(
        self,
        group: dict[str, Any],
        step: int,
        params: list[Tensor],
        grads: list[Tensor],
        states: Lists,
        owners: Sequence[Tensor],
    ) -> None:
        """One step of these parameters."""
        first, second, previous = (states[name] for name in self.held)
        (beta1, beta2), lr, decay = group["betas"], float(group["lr"]), group["weight_decay"]
        if decay and group["decoupled"]:
            torch._foreach_mul_(params, 1 - lr * decay)
        elif decay:
            grads = list(torch._foreach_add(grads, params, alpha=decay))
        adam_moments_(first, second, grads, group["betas"])
        torch._foreach_sub_(previous, grads)
        torch._foreach_abs_(previous)
        torch._foreach_sigmoid_(previous)
        torch._foreach_mul_(previous, first)
        below = torch._foreach_sqrt(second)
        torch._foreach_add_(below, group["eps"])
        size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        torch._foreach_addcdiv_(params, previous, below, -size)
        torch._foreach_copy_(previous, grads)

"""CLASSP: only weights with a large gradient move, and each the less the more it has moved before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import flag, non_negative, number, positive
from trimtab.optimizers.foreach import ForeachOptimizer, Lists, learning_rate


class CLASSP(ForeachOptimizer):
    """CLASSP: continual learning by steps that fade where earlier tasks have learned.

    Element by element, where `g^2 > threshold`: `G <- G + |g|^power`, `w <- w - lr g / (eps + G)^(1 / power)`; else nothing.
    During the first task (`scaling=False`) every element takes the plain step `w <- w - lr g` and adds to G; then
    `optimizer.start_task()`.

    Args:
        params: parameters, groups, or (name, parameter) pairs.
        lr: learning rate, 0 or more. Default 0.2 (authors).
        threshold: of g^2, in the units of the gradient; 0 or more. Default 0.5 (authors).
        eps: added to G; above 0. Default 1e-5.
        power: above 0. Default 1; 2 is AdaGrad with a threshold.
        quantile: instead of `threshold`: that quantile of each tensor's g^2; in [0, 1). Default None [ours].
        scaling: whether steps fade from the start. Default True.
        foreach: None or True: all tensors together; False: one at a time.
        maximize: step up the gradient.

    Raises:
        ValueError: a number out of range.
        TypeError: (at the step) a complex parameter or a sparse gradient.

    The rule of the paper. The authors' class compares a truth value with the threshold, so that all elements always pass, and
    drops the power. A clip before it shrinks gradients below the threshold.

    Reference: Ludwig, CLASSP, arXiv 2405.09637.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = CLASSP([weight], lr=0.2, threshold=0.5)
        >>> weight.grad = torch.tensor([2.0, 0.1])
        >>> optimizer.step()
        >>> weight.detach()
        tensor([0.8000, 1.0000])
    """

    held = ("moved",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.2,
        threshold: float = 0.5,
        eps: float = 1e-5,
        power: float = 1.0,
        *,
        quantile: float | None = None,
        scaling: bool = True,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": learning_rate(lr),
            "threshold": non_negative("threshold", threshold),
            "eps": positive("eps", eps),
            "power": positive("power", power),
            "quantile": None if quantile is None else number("quantile", quantile, least=0, below=1),
            "scaling": flag("scaling", scaling),
        }
        super().__init__(params, defaults, foreach=foreach, maximize=maximize)

    def start_task(self, *, scaling: bool = True) -> None:
        """A new task begins: from now on steps fade, or do not."""
        for group in self.param_groups:
            group["scaling"] = flag("scaling", scaling)

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
        moved, power = states["moved"], group["power"]
        if group["scaling"]:
            squares = torch._foreach_mul(grads, grads)
            # NaN stays: a comparison with it would hide it
            large = [~(square <= self._limit(group, square)) for square in squares]
            grads = list(torch._foreach_mul(grads, [one.to(grad) for one, grad in zip(large, grads, strict=True)]))
        sizes = torch._foreach_abs(grads)
        if power != 1:
            torch._foreach_pow_(sizes, power)
        torch._foreach_add_(moved, sizes)
        if group["scaling"]:
            below = torch._foreach_add(moved, group["eps"])
            if power != 1:
                torch._foreach_pow_(below, 1 / power)
            torch._foreach_addcdiv_(params, grads, list(below), -float(group["lr"]))
        else:
            torch._foreach_add_(params, grads, alpha=-float(group["lr"]))

    def _limit(self, group: dict[str, Any], squares: Tensor) -> Tensor | float:
        if group["quantile"] is None:
            return float(group["threshold"])
        place = int(group["quantile"] * (squares.numel() - 1))
        return squares.flatten().sort().values[place]

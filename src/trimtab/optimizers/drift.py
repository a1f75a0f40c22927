"""DriftLearningRate: a step size from the curvature along the gradient, found anew at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, number, positive, whole
from trimtab.collectives import local_part
from trimtab.optimizers.norms import global_norm, gradients_of
from trimtab.optimizers.two_pass import TwoPassOptimizer


@dataclass(frozen=True)
class _First:
    """The gradient at the weights themselves, its norm, and how far along it the second one is taken."""

    holders: list[Tensor]
    gradients: list[Tensor]
    norm: float
    ahead: float


class DriftLearningRate(TwoPassOptimizer):
    """DAL: the learning rate from how fast the gradient turns along itself, `h = min(2 / (||H g|| / ||g||)^power, max_lr)`.

    H g is a difference of gradients of the same data, `(g(w + e g) - g(w)) / e` with `e = distance / ||g||`. The base optimizer
    then steps from w with g and the rate `lr h (1 - momentum)`: its own rates count as factors of h, so that ratios of groups
    and schedules hold. Give it lr=1.

    Args:
        base: a `torch.optim` optimizer instance, such as SGD (paper) with lr=1.
        power: 0 to 1: 1 is the edge of stability along g, 1/2 the default (paper), 0 is the constant rate 2.
        max_lr: greatest h; above 0. Default 5 (authors' code).
        every: steps between looks at the curvature; in between h stays and a step costs one gradient. Default 1.
        ema: decay of a running mean of h, in [0, 1). Default 0: h itself.
        distance: length of `e g`, in the weights' units; above 0. Default 0.01 (authors' code).
        model: the network, so that its running statistics can be put back after the second pass.

    Attributes:
        rate: h as it is now; None before the first step.
        drift: `||H g||` of the last look.

    Raises:
        TypeError: `base` is not an optimizer instance, is itself a two-pass wrapper, or needs a closure.
        ValueError: a number is out of range.

    The factor `1 - momentum` is ours [ours]: the paper has no momentum. A gradient of zero leaves h; before the
    first that is not zero nothing moves, by decay neither. Both gradients see the
    same random numbers, and running statistics count once.

    Reference: Rosca et al., On a continuous time model of gradient descent dynamics, arXiv 2302.01952.

    Example:
        >>> w = nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = DriftLearningRate(torch.optim.SGD([w], lr=1.0), power=1.0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = 2 * w.square().sum()  # curvature 4
        ...     loss.backward()
        ...     return loss
        >>> _ = optimizer.step(closure)
        >>> round(optimizer.rate, 3), round(w.item(), 3)
        (0.5, -3.0)
    """

    def __init__(
        self,
        base: torch.optim.Optimizer,
        power: float = 0.5,
        max_lr: float = 5.0,
        every: int = 1,
        ema: float = 0.0,
        distance: float = 0.01,
        model: nn.Module | None = None,
    ) -> None:
        self.power = number("power", power, least=0, most=1)
        self.max_lr = positive("max_lr", max_lr)
        self.every = whole("every", every, least=1)
        self.ema = below_one("ema", ema)
        self.distance = positive("distance", distance)
        self.rate: float | None = None
        self.drift: float | None = None
        super().__init__(base, model)

    def _second_pass(self) -> bool:
        return self.rate is None or self.steps % self.every == 0

    def _perturb(self, parameters: list[Tensor], norm: float) -> _First:
        holders = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [local_part(one).clone() for one in gradients_of(holders)]
        ahead = self.distance / norm if norm else 0.0
        if holders:
            torch._foreach_add_([local_part(parameter) for parameter in holders], gradients, alpha=ahead)
        return _First(holders, gradients, norm, ahead)

    def _final_gradient(self, parameters: list[Tensor], memory: _First) -> None:
        for parameter in memory.holders:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        known = {id(parameter) for parameter in memory.holders}
        for parameter in parameters:
            if id(parameter) not in known:
                parameter.grad = None
        found = gradients_of(memory.holders)
        places = [local_part(one) for one in found]
        torch._foreach_sub_(places, memory.gradients)
        turned = global_norm(found, memory.holders)
        torch._foreach_copy_(places, memory.gradients)
        if memory.norm:
            self.drift = turned / memory.ahead
            self._learn(2 / max(self.drift / memory.norm, 1e-300) ** self.power)

    def _learn(self, rate: float) -> None:
        rate = min(rate, self.max_lr)
        self.rate = rate if self.rate is None else self.ema * self.rate + (1 - self.ema) * rate

    def _take_step(self, scaler: torch.amp.GradScaler | None) -> None:
        kept = [(group, group["lr"]) for group in self.param_groups]
        for group, rate in kept:
            own = 0.0 if self.rate is None else self.rate  # None: all gradients were zero, and nothing is to move
            group["lr"] = rate * own * (1 - group.get("momentum", 0.0))
        try:
            super()._take_step(scaler)
        finally:
            for group, rate in kept:
                group["lr"] = rate

    def describe(self) -> dict[str, float]:
        """`rate`, h as it is now, and `drift`, `||H g||` of the last look."""
        return {name: value for name in ("rate", "drift") if (value := getattr(self, name)) is not None}

    def own_state(self) -> dict[str, Any]:
        """Steps counted, h and the last drift."""
        return {**super().own_state(), "rate": self.rate, "drift": self.drift}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Take over what `own_state` gave."""
        super().load_own_state(state)
        self.rate, self.drift = state["rate"], state["drift"]

    def _settings(self) -> str:
        names = ("power", "max_lr", "every", "ema", "distance")
        return ", ".join(f"{name}={getattr(self, name):g}" for name in names)

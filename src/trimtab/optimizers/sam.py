"""Sharpness-Aware Minimization (Foret et al. 2021, arXiv 2010.01412)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.checks import non_negative
from trimtab.collectives import local_part
from trimtab.optimizers.norms import TINY
from trimtab.optimizers.two_pass import TwoPassOptimizer


class SAM(TwoPassOptimizer):
    """Step with the gradient taken at the worst point of a small ball around the weights.

    Formula: `e = rho * g / (||g||_2 + 1e-12)`, the norm over all tensors of all groups together; the base optimizer
    steps from w with the gradient at `w + e`.

    Costs a second forward and backward pass per step, and during the step one copy of the weights. Keeps no state
    beyond the base optimizer's but a step count.

    Args:
        base: any `torch.optim` optimizer instance whose step needs no closure.
        rho: radius of the ball, in the weights' units. Default 0.05 (paper).
        model: the network, so that its running statistics can be put back after the second pass. Without it they are
            found by a hook on every module's forward; give the model when it is compiled.

    Ours: both passes see the same random numbers (dropout masks), and a step draws as many from PyTorch's default
    generators as the base optimizer's step would; the running statistics of BatchNorm come from the first pass alone;
    frozen parameters and those without a gradient stay where they are.

    Raises:
        TypeError: `base` is not an optimizer instance, is itself a two-pass wrapper, or needs a closure (LBFGS).
        ValueError: `rho` is negative or not finite.

    Reference: arXiv 2010.01412.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.1), rho=0.05, model=net)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = net(torch.ones(1, 2)).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item() >= 0
        True
    """

    def __init__(self, base: torch.optim.Optimizer, rho: float = 0.05, model: nn.Module | None = None) -> None:
        self.rho = non_negative("rho", rho)
        super().__init__(base, model)

    def _perturb(self, parameters: list[Tensor], norm: float) -> None:
        holders = [parameter for parameter in parameters if parameter.grad is not None]
        if holders:
            weights, gradients = [local_part(p) for p in holders], [local_part(p.grad) for p in holders]  # type: ignore[arg-type]
            torch._foreach_add_(weights, gradients, alpha=self.rho / (norm + TINY))

    def _settings(self) -> str:
        return f"rho={self.rho:g}"

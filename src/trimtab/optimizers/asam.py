"""Adaptive Sharpness-Aware Minimization (Kwon et al. 2021, arXiv 2102.11600)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trimtab.checks import non_negative
from trimtab.collectives import local_part
from trimtab.optimizers.norms import TINY, global_norm
from trimtab.optimizers.two_pass import TwoPassOptimizer

HALVES = (torch.bfloat16, torch.float16)


class ASAM(TwoPassOptimizer):
    """SAM in a ball that is measured relative to each weight, so that rescaling the layers does not change it.

    Formula: `T = |w| + eta` for tensors with more than one dimension, 1 for the rest;
    `e = rho * T^2 g / (||T g||_2 + 1e-12)`, the norm over all tensors; the base optimizer steps from w with the
    gradient at `w + e`.

    Costs a second forward and backward pass per step, and during the step two to three copies of the weights. Keeps no
    state beyond the base optimizer's but a step count.

    Args:
        base: any `torch.optim` optimizer instance whose step needs no closure.
        rho: radius, relative to the weights. Default 0.5 (paper, CIFAR-10; 1.0 for CIFAR-100).
        eta: keeps weights of size 0 movable. Default 0.01 (paper).
        model: see `SAM`.

    Ours: "weight tensors" are those with more than one dimension, so scales of norm layers count as the rest; what
    `SAM` decides on randomness, running statistics and missing gradients.

    Raises:
        TypeError: as `SAM`.
        ValueError: `rho` or `eta` is negative or not finite.

    Reference: arXiv 2102.11600.

    Example:
        >>> net = torch.nn.Linear(2, 1)
        >>> ASAM(torch.optim.SGD(net.parameters(), lr=0.1))
        ASAM(SGD with 1 group, rho=0.5, eta=0.01)
    """

    def __init__(
        self, base: torch.optim.Optimizer, rho: float = 0.5, eta: float = 0.01, model: nn.Module | None = None
    ) -> None:
        self.rho = non_negative("rho", rho)
        self.eta = non_negative("eta", eta)
        super().__init__(base, model)

    def _perturb(self, parameters: list[Tensor], norm: float) -> None:
        holders = [parameter for parameter in parameters if parameter.grad is not None]
        if not holders:
            return
        weights = [local_part(parameter) for parameter in holders]
        scaled = [local_part(p.grad) for p in holders]  # type: ignore[arg-type]
        scaled = [gradient.float() if gradient.dtype in HALVES else gradient for gradient in scaled]
        shaped = [position for position, parameter in enumerate(holders) if parameter.ndim > 1]
        scales: list[Tensor] = []
        if shaped:
            sizes = [weights[position] for position in shaped]
            scales = list(torch._foreach_abs([w.float() if w.dtype in HALVES else w for w in sizes]))
            torch._foreach_add_(scales, self.eta)
            products = torch._foreach_mul(scales, [scaled[position] for position in shaped])
            for position, product in zip(shaped, products, strict=True):
                scaled[position] = product
        factor = self.rho / (global_norm(scaled, holders) + TINY)
        if shaped:
            torch._foreach_mul_([scaled[position] for position in shaped], scales)
        torch._foreach_add_(weights, scaled, alpha=factor)

    def _settings(self) -> str:
        return f"rho={self.rho:g}, eta={self.eta:g}"

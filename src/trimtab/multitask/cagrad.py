"""CAGrad: near the mean gradient, the one that helps the worst-off loss most."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import non_negative
from trimtab.multitask.base import Weighted

SWEEPS = 500
"""Most passes over all pairs of losses."""


class CAGrad(Weighted):
    """Conflict-averse gradient: within a ball around the mean, the direction that lowers the worst-off loss fastest.

    With `g_0` the mean of the gradients and `g_w = sum_k w_k g_k`: `w = argmin <g_w, g_0> + c ||g_0|| ||g_w||` over weights
    that are 0 or more and sum to 1; the result is `g_0 + c ||g_0|| / ||g_w|| g_w`.

    Args:
        c: radius of the ball in norms of the mean; 0 (the mean itself) or more; below 1 it still minimises the mean of the
            losses. Default 0.5 (paper).

    Raises:
        ValueError: c is negative.

    The weights are found pair by pair: moving weight from one loss to another has a closed form, so two losses are solved
    exactly in one step and more to 1e-12 of the weights. Where `g_w` is zero the result is the mean, as in the authors' code.
    Not divided by 1 + c, as in torchjd.

    Reference: Liu et al., arXiv 2110.14048.

    Example:
        >>> CAGrad(c=0.5)(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        tensor([1.5000, 1.5000])
    """

    def __init__(self, c: float = 0.5) -> None:
        self.c = non_negative("c", c)

    def weights(self, products: Tensor) -> Tensor:
        """The mean's 1/K and what the worst-off losses get beside it."""
        count = len(products)
        even = torch.full((count,), 1 / count, dtype=torch.float64)
        size = math.sqrt(max(float(even @ products @ even), 0.0))
        if not size or not self.c:
            return even
        # in units of the largest norm, so that nothing leaves the range of float64
        scale = float(products.diagonal().max())
        pull, radius = (products @ even / scale).tolist(), self.c * size / math.sqrt(scale)
        chosen = torch.tensor(_worst_off((products / scale).tolist(), pull, radius), dtype=torch.float64)
        length = math.sqrt(max(float(chosen @ products @ chosen), 0.0))
        return even if length <= 1e-8 * math.sqrt(scale) else even + self.c * size / length * chosen

    def settings(self) -> dict[str, Any]:
        """The radius."""
        return {"c": self.c}


def _worst_off(products: list[list[float]], pull: list[float], radius: float) -> list[float]:
    """`argmin <pull, w> + radius sqrt(w' P w)` over the simplex, moving weight between two losses at a time."""
    count = len(pull)
    weights = [1 / count] * count
    product = [sum(row) / count for row in products]  # P w
    for _ in range(SWEEPS):
        moved = 0.0
        for i in range(count):
            for j in range(i):
                # w_i + t, w_j - t: the quadratic form is A t^2 + 2 B t + C
                A = products[i][i] + products[j][j] - 2 * products[i][j]
                C = max(sum(w * p for w, p in zip(weights, product, strict=True)), 0.0)
                t = _shift(pull[i] - pull[j], radius, A, product[i] - product[j], C)
                t = min(max(t, -weights[i]), weights[j])
                weights[i], weights[j] = weights[i] + t, weights[j] - t
                product = [p + t * (row[i] - row[j]) for p, row in zip(product, products, strict=True)]
                moved = max(moved, abs(t))
        if moved < 1e-12:
            break
    return weights


def _shift(b: float, c: float, A: float, B: float, C: float) -> float:
    """`argmin b t + c sqrt(A t^2 + 2 B t + C)`; infinite where it falls for ever."""
    if A <= 1e-15:
        return 0.0 if b == 0 else -math.copysign(math.inf, b)
    if abs(b) >= c * math.sqrt(A):
        return -math.copysign(math.inf, b)
    D = max(A * C - B * B, 0.0)
    return (-b * math.sqrt(D / (c * c * A - b * b)) - B) / A

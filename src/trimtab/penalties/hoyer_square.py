"""HoyerSquare: the squared ratio of the L1 to the L2 norm, an almost-count of the non-zero weights."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.parameters import Rule
from trimtab.penalties.magnitude import Law, MagnitudePenalty
from trimtab.penalties.magnitude_pass import Magnitudes


class HoyerSquare(MagnitudePenalty):
    """`psi = sum over tensors of (sum |w|)^2 / sum w^2`, between 1 (one weight left) and n (all of one magnitude).

    Gradient, with `S1 = sum |w|` and `S2 = sum w^2`: `2 (S1 / S2) sign(w_i) - 2 (S1 / S2)^2 w_i`, which is 0 at w = 0.
    A tensor of zeros adds 0. With CV the coefficient of variation of `|w|`, psi = n / (1 + CV^2): a function of
    `VarianceAmplifier(form="relative")`, whose psi is 1 / CV^2 (drop r and eps). Scaling a tensor does not change psi.

    Args:
        strength: lambda. Default 1e-5 [ours]; choose it on validation data.
        rule: which tensors count. Default at least two dimensions [ours].

    Raises:
        ValueError: the strength is negative or not finite.

    Source: Yang, Wen, Li 2020, "DeepHoyer", arXiv 1908.09979.

    Example:
        >>> HoyerSquare(strength=1.0).value([torch.nn.Parameter(torch.tensor([[2.0, -2.0, 0.0]]))])
        tensor(2., grad_fn=<MulBackward0>)
    """

    def __init__(self, strength: float = 1e-5, rule: Rule | None = None) -> None:
        super().__init__(strength, rule)

    def psi(self, weight: Tensor) -> Tensor:
        """`(sum |w|)^2 / sum w^2` of one tensor, differentiable; 0 for a tensor of zeros; shape ()."""
        squares = weight.square().sum()
        empty = squares == 0
        return torch.where(empty, 0.0, self.magnitudes(weight).sum().square() / torch.where(empty, 1.0, squares))

    def law(self, statistics: Magnitudes) -> Law:
        """psi and its gradient's coefficients, per tensor."""
        count, mean, variance = statistics
        square = variance + mean * mean
        inverse = torch.where(square == 0, 0.0, 1 / torch.where(square == 0, 1.0, square))
        ratio = mean * inverse
        return Law(count * mean * ratio, 2 * ratio * variance * inverse, -2 * ratio * ratio)

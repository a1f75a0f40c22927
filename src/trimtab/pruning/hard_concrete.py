"""Hard concrete gates (Louizos et al. 2018, arXiv 1712.01312; as EcoDiff uses them, arXiv 2412.02852)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from trimtab.checks import non_negative, number, one_of, positive

PenaltyKind = Literal["l0", "l1"]
PENALTIES = ("l0", "l1")


class HardConcreteGate(nn.Module):
    """Gates between 0 and 1 that can be exactly 0 and are learned by gradient: `gate * x` switches parts of a network off.

    In training, with u uniform in (0, 1):

        s = sigmoid((log(u + e) - log(1 - u + e) + alpha) / beta),   gate = clamp(s (zeta - gamma) + gamma, 0, 1)

    in evaluation `gate = clamp(sigmoid(alpha) (zeta - gamma) + gamma, 0, 1)`. Only alpha is trained. One draw for each forward
    pass, the same for every example.

    Args:
        shape: of the gates; a number for a vector.
        beta: temperature. Default 0.83 (EcoDiff; the first paper has 2/3).
        stretch: gamma and zeta, below 0 and above 1. Default (-0.1, 1.1) (both papers).
        noise_eps: e. Default 1e-8. EcoDiff's 0.5 for one model bounds the noise to +-1.1.
        init: alpha at the start. Default 3.0 [ours]: evaluated 1, open with 99.2 % probability.

    `penalty("l0")` is the expected number of open gates, `sum sigmoid(alpha - beta log(-gamma / zeta))`, exact as e goes to
    0; with e above 1e-3 it is a surrogate only (off by up to 0.21 for each gate at 0.5), said in a warning.

    Raises:
        ValueError: a number out of range, or a stretch that does not reach beyond 0 and 1.

    Source: arXiv 1712.01312, 2412.02852.

    Example:
        >>> gate = HardConcreteGate(3, init=0.0).eval()
        >>> gate().detach(), round(gate.penalty().item(), 3)
        (tensor([0.5000, 0.5000, 0.5000]), 2.639)
    """

    def __init__(
        self,
        shape: int | Sequence[int],
        beta: float = 0.83,
        stretch: tuple[float, float] = (-0.1, 1.1),
        noise_eps: float = 1e-8,
        init: float = 3.0,
    ) -> None:
        super().__init__()
        self.beta = positive("beta", beta)
        self.gamma, self.zeta = number("stretch[0]", stretch[0], below=0), number("stretch[1]", stretch[1], above=1)
        self.noise_eps = non_negative("noise_eps", noise_eps)
        self.init = number("init", init)
        size = (shape,) if isinstance(shape, int) else tuple(shape)
        self.alpha = nn.Parameter(torch.full(size, self.init))

    def _stretched(self, s: Tensor) -> Tensor:
        return (s * (self.zeta - self.gamma) + self.gamma).clamp(0, 1)

    def sample(self, u: Tensor | None = None) -> Tensor:
        """Gates by draws u of alpha's shape from [0, 1), or by new ones."""
        u = torch.rand_like(self.alpha) if u is None else u
        noise = (u + self.noise_eps).log() - (1 - u + self.noise_eps).log()
        return self._stretched(((noise + self.alpha) / self.beta).sigmoid())

    def evaluated(self) -> Tensor:
        """The gates without noise."""
        return self._stretched(self.alpha.sigmoid())

    def open_probability(self) -> Tensor:
        """Probability that a gate is not 0, for e that goes to 0."""
        return (self.alpha - self.beta * math.log(-self.gamma / self.zeta)).sigmoid()

    def penalty(self, kind: PenaltyKind = "l0") -> Tensor:
        """ "l0": expected number of open gates; "l1": mean of `sigmoid(0.4 alpha + 1)` (EcoDiff); shape ()."""
        if one_of("kind", kind, PENALTIES) == "l1":
            return (0.4 * self.alpha + 1).sigmoid().mean()
        if self.noise_eps > 1e-3:
            warnings.warn(
                f"with noise_eps {self.noise_eps:g} (above 1e-3) the L0 penalty is no longer the expected number of open "
                "gates, only a surrogate",
                stacklevel=2,
            )
        return self.open_probability().sum()

    def forward(self) -> Tensor:
        """The gates: drawn in training, without noise in evaluation."""
        return self.sample() if self.training else self.evaluated()

    def extra_repr(self) -> str:
        """Shape and numbers."""
        return (
            f"{tuple(self.alpha.shape)}, beta={self.beta:g}, stretch=({self.gamma:g}, {self.zeta:g}), "
            f"noise_eps={self.noise_eps:g}"
        )


def match_output_loss(student: object, teacher: object) -> Tensor:
    """`||y_gated - y||^2` for each example: squared differences summed over outputs, mean over the first axis.

    Args:
        student: what the gated network puts out: a tensor, or tensors in tuples, lists, dicts, outputs of transformers.
        teacher: the same of the network without gates; gets no gradient.

    Raises:
        ValueError: the two do not hold the same number of tensors, or these have other shapes.

    Source: arXiv 2412.02852.

    Example:
        >>> float(match_output_loss(torch.ones(2, 3), torch.zeros(2, 3)))
        3.0
    """
    pairs = [
        [leaf for leaf in tree_leaves(side) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        for side in (student, teacher)
    ]
    shapes = [[tuple(leaf.shape) for leaf in side] for side in pairs]
    if shapes[0] != shapes[1] or not shapes[0]:
        raise ValueError(f"both sides must hold tensors of the same shapes, got {shapes[0]} and {shapes[1]}")
    squares = [(one - other.detach()).square() for one, other in zip(*pairs, strict=True)]
    return torch.stack([square.sum() / (square.shape[0] if square.ndim else 1) for square in squares]).sum()

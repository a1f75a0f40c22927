"""AdaptiveClip: the gradient of every unit is kept below a share of the unit's own norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.gradients.base import EVERY_TENSOR, GradientTransform, positive
from trimtab.gradients.channels import finite_or
from trimtab.gradients.passes import by_kind, piece_limit, pieces, widened, write_back
from trimtab.gradients.units import (
    channel_axis,
    columns_for,
    is_cut,
    norms_of_rows,
    over_ranks,
    rows_of,
    same_layout,
)
from trimtab.parameters import Entry, Rule

LEAST_GRADIENT_NORM = 1e-6
"""Floor of a gradient's norm before the division by it, as in the authors' code."""


def last_linear(parameters: Sequence[Entry]) -> nn.Module | None:
    """The module of the last entry that belongs to a Linear layer.

    Example:
        >>> from trimtab.parameters import entries
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> last_linear(entries(net)) is net[2]
        True
    """
    return next((entry.owner for entry in reversed(parameters) if isinstance(entry.owner, nn.Linear)), None)


class AdaptiveClip(GradientTransform):
    """Adaptive Gradient Clipping (AGC): scale down the gradient of each unit that is large beside its weights.

    For each unit u, `limit = clip * max(||w_u||, eps)`, and where `||g_u|| > limit`:
    `g_u <- g_u * limit / max(||g_u||, 1e-6)`. A unit is an output row (`Entry.output_axis`: dimension 1 of transposed
    convolutions, 0 of all others); a tensor of one dimension or none is one unit.

    Args:
        clip: greatest ratio of gradient norm to weight norm; finite, above 0. Default 0.01, the paper's value.
        eps: floor of the weight norm, so that weights of zero can grow. Default 1e-3, the paper's value.
        exclude_last_linear: leave out the last Linear layer, its bias too, as the paper does. Default True. The last is
            the last in the optimizer's order of parameters, and owners must be known: `attach(..., model=model)`.
        rule: which tensors count. Default all trainable ones, `Rule(min_ndim=0)`.

    Raises:
        ValueError: `clip` or `eps` is out of range; (at the step) the last Linear layer is to be left out, but no
            parameter is known to belong to one.
        TypeError: (at the step) a chosen tensor is complex or its gradient sparse.

    Reference: Brock et al., arXiv 2102.06171.

    Example:
        >>> import trimtab
        >>> net = nn.Linear(2, 1, bias=False)
        >>> _ = nn.init.constant_(net.weight, 0.0)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> transform = trimtab.gradients.AdaptiveClip(clip=0.1, eps=1.0, exclude_last_linear=False)
        >>> handle = trimtab.attach(optimizer, transform)
        >>> net.weight.grad = torch.tensor([[3.0, 4.0]])
        >>> optimizer.step()
        >>> net.weight.grad
        tensor([[0.0600, 0.0800]])
    """

    default_rule = EVERY_TENSOR

    def __init__(
        self, clip: float = 0.01, eps: float = 1e-3, exclude_last_linear: bool = True, rule: Rule | None = None
    ) -> None:
        super().__init__(rule)
        self.clip = positive("clip", clip)
        self.eps = positive("eps", eps)
        if not isinstance(exclude_last_linear, bool):
            raise TypeError(f"exclude_last_linear must be True or False, got {exclude_last_linear!r}")
        self.exclude_last_linear = exclude_last_linear
        self._clipped: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """`clip`, `eps` and `exclude_last_linear`."""
        return {"clip": self.clip, "eps": self.eps, "exclude_last_linear": self.exclude_last_linear}

    def signals(self) -> dict[str, Tensor]:
        """`clipped`: the share of units that were scaled down (of those on this rank)."""
        return {} if self._clipped is None else {"clipped": self._clipped}

    def chosen(self, parameters: Sequence[Entry]) -> list[Entry]:
        """The entries with a gradient that the rule picks, without the last Linear layer."""
        if self.exclude_last_linear:
            head = last_linear(parameters)
            if head is None:
                raise ValueError(
                    f"{self!r} is to leave out the last Linear layer, but none of the {len(parameters)} parameters is "
                    "known to belong to one; pass model=... to attach, or set exclude_last_linear=False"
                )
            parameters = [entry for entry in parameters if entry.owner is not head]
        return super().chosen(parameters)

    def _factor(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What to multiply by, from the norms of weights and gradients, which are used up."""
        limit = weight.clamp_(min=self.eps).mul_(self.clip)
        return finite_or(limit.div_(gradient.clamp_(min=LEAST_GRADIENT_NORM)), 1.0).clamp_(max=1.0)

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Scale down every unit that is too large."""
        whole: list[tuple[Tensor, Tensor]] = []
        cut: list[tuple[Tensor, int | None, Tensor, Tensor]] = []
        for entry in chosen:
            axis = channel_axis(entry)
            weight, gradient = same_layout(entry)
            rows = rows_of(weight, axis), rows_of(gradient, axis)
            if is_cut(entry.parameter, axis):
                cut.append((entry.parameter, axis, *rows))
            elif gradient.numel():
                whole.append(rows)
        counts: list[tuple[Tensor, int]] = []
        for group in by_kind([gradient for _, gradient in whole]):
            weights, gradients = [whole[at][0] for at in group], [whole[at][1] for at in group]
            limit = piece_limit(gradients[0].device) // 2
            beside = pieces(weights, limit)
            for _, parts in pieces(gradients, limit):
                _, weight_parts = next(beside)
                counts.append(self._clip_piece_(weight_parts, parts))
        if cut:
            counts += self._clip_cut_(cut)
        device = chosen[0].parameter.device
        units = max(1, sum(number for _, number in counts))
        self._clipped = sum((count.to(device) for count, _ in counts), torch.zeros((), device=device)) / units

    def _clip_piece_(self, weights: list[Tensor], gradients: list[Tensor]) -> tuple[Tensor, int]:
        norms = [
            torch.cat([norms_of_rows(part) for part in parts]) if len(parts) > 1 else norms_of_rows(parts[0])
            for parts in (weights, gradients)
        ]
        factor = self._factor(*norms)
        worked = widened(gradients)
        torch._foreach_mul_(worked, columns_for(worked, factor))
        write_back(worked, gradients)
        return (factor < 1).sum(), factor.numel()

    def _clip_cut_(self, cut: Sequence[tuple[Tensor, int | None, Tensor, Tensor]]) -> list[tuple[Tensor, int]]:
        """The same for units spread over ranks: their squared norms are added first, by one collective."""
        sums = [
            torch.cat([norms_of_rows(rows).double().square() for rows in (weight, gradient)], 1)
            for _, _, weight, gradient in cut
        ]
        counts = []
        joined = over_ranks(sums, [parameter for parameter, *_ in cut], [axis for _, axis, *_ in cut])
        for (_, _, _, gradient), squares in zip(cut, joined, strict=True):
            weight_norm, gradient_norm = torch.split(squares.sqrt(), 1, 1)
            factor = self._factor(weight_norm, gradient_norm)
            worked = widened([gradient])
            torch._foreach_mul_(worked, columns_for(worked, factor.to(worked[0].dtype)))
            gradient.copy_(worked[0])
            counts.append(((factor < 1).sum(), factor.numel()))
        return counts

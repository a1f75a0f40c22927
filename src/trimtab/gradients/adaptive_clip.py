"""AdaptiveClip: the gradient of every unit is kept below a share of the unit's own norm."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import flag, positive
from trimtab.gradients.base import EVERY_TENSOR, GradientTransform
from trimtab.gradients.channels import finite_or
from trimtab.parameters import Entry, Rule
from trimtab.parameters.layouts import is_linear
from trimtab.tensors.blocks import blocks, columns, norms
from trimtab.tensors.passes import working_dtype
from trimtab.tensors.unit_sums import unit_squares
from trimtab.tensors.units import (
    Item,
    channel_axis,
    is_cut,
    items_of,
    over_ranks,
    rows_of,
    same_layout,
)

LEAST_GRADIENT_NORM = 1e-6
"""Floor of a gradient's norm before the division by it, as in the authors' code."""


def last_linear(parameters: Sequence[Entry]) -> nn.Module | None:
    """The last linear layer in the model's order, whatever the order of the entries; a tied weight stands at its last name.

    Entries without a model stand in the order given.

    Example:
        >>> from trimtab.parameters import entries
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> last_linear(entries(net)) is net[2]
        True
    """
    found, last = None, -1
    for entry in parameters:
        if entry.places[1] < last:
            continue
        for owner in entry.owners or (entry.owner,):
            if owner is not None and is_linear(owner):
                found, last = owner, entry.places[1]
    return found


class AdaptiveClip(GradientTransform):
    """Adaptive Gradient Clipping (AGC): scale down the gradient of each unit that is large beside its weights.

    For each unit u, `limit = clip * max(||w_u||, eps)`, and where `||g_u|| > limit`:
    `g_u <- g_u * limit / max(||g_u||, 1e-6)`. A unit is an output row (`Entry.output_axis`, as the owner says; of stacked
    experts a row of one expert); a tensor of one dimension or none, a scale and a table of positions are one unit. What has
    more dimensions and an owner that does not say which are outputs is left alone, with its reason in `left_out`.

    Args:
        clip: greatest ratio of gradient norm to weight norm; finite, above 0. Default 0.01, the paper's value.
        eps: floor of the weight norm, so that weights of zero can grow. Default 1e-3, the paper's value.
        exclude_last_linear: leave out the last Linear layer, its bias too, as the paper does. Default True. The last is
            the last in the model's order, a tied weight standing at its last name; owners must be known:
            `attach(..., model=model)`.
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
    needs_axis = True

    def __init__(
        self, clip: float = 0.01, eps: float = 1e-3, *, exclude_last_linear: bool = True, rule: Rule | None = None
    ) -> None:
        super().__init__(rule)
        self.clip = positive("clip", clip)
        self.eps = positive("eps", eps)
        self.exclude_last_linear = flag("exclude_last_linear", exclude_last_linear)
        self._clipped: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """`clip`, `eps` and `exclude_last_linear`."""
        return {"clip": self.clip, "eps": self.eps, "exclude_last_linear": self.exclude_last_linear}

    def signals(self) -> dict[str, Tensor]:
        """`clipped`: the share of units that were scaled down (of those on this rank)."""
        return {} if self._clipped is None else {"clipped": self._clipped}

    def chosen(self, parameters: Sequence[Entry]) -> list[Entry]:
        """The entries with a gradient that the rule picks, without the last Linear layer."""
        picked = super().chosen(parameters)
        if self.exclude_last_linear:
            head = last_linear(parameters)
            if head is None:
                raise ValueError(
                    f"{self!r} is to leave out the last Linear layer, but none of the {len(parameters)} parameters is "
                    "known to belong to one; pass model=... to attach, or set exclude_last_linear=False"
                )
            picked = [entry for entry in picked if entry.owner is not head and head not in entry.owners]
        return picked

    def _factor(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What to multiply by, from the norms of weights and gradients, which are used up."""
        limit = weight.clamp_(min=self.eps).mul_(self.clip)
        return finite_or(limit.div_(finite_or(gradient, math.nan).clamp_(min=LEAST_GRADIENT_NORM)), 1.0).clamp_(max=1.0)

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Scale down every unit that is too large."""
        weights: list[Tensor] = []
        gradients: list[Item] = []
        cut: list[tuple[Tensor, Item, Item]] = []
        for entry in chosen:
            parameter, axis = entry.parameter, channel_axis(entry)
            if type(parameter.grad) is Tensor and entry.stack_axis is None:  # most of them: as little as can be
                weights.append(parameter)
                gradients.append(Item(parameter.grad, axis))
                continue
            weight, gradient = same_layout(entry)
            if is_cut(entry, parameter):
                cut.append((parameter, Item(weight, axis), Item(gradient, axis)))
            else:
                weights += [item.tensor for item in items_of(entry, weight)]
                gradients += items_of(entry, gradient)
        counts: list[Tensor] = []
        units = 0
        for block in blocks(gradients):
            factor = self._factor(norms(block.same_units_of(weights)), norms(block.rows))
            torch._foreach_mul_(block.rows, columns(factor, block.rows))
            block.write_back()
            counts.append((factor < 1).sum())
            units += factor.numel()
        for rows, factor in self._factors_of_cut(cut):
            worked = rows.to(working_dtype(rows))
            rows.copy_(worked * columns(factor, [worked])[0])
            counts.append((factor < 1).sum())
            units += factor.numel()
        device = chosen[0].parameter.device
        clipped = sum((count.to(device) for count in counts), torch.zeros((), device=device))
        self._clipped = clipped / max(1, units)

    def _factors_of_cut(self, cut: Sequence[tuple[Tensor, Item, Item]]) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows and factors of units spread over ranks: their squared norms are added first, by one collective."""
        if not cut:
            return
        rows = [[rows_of(*item) for item in pair] for _, *pair in cut]
        sums = [torch.cat([unit_squares([view]) for view in pair], 1) for pair in rows]
        joined = over_ranks(sums, [parameter for parameter, *_ in cut], [item.axis for _, item, _ in cut])
        for (_, gradient), found in zip(rows, joined, strict=True):
            weight_norm, gradient_norm = torch.split(found.sqrt(), 1, 1)
            yield gradient, self._factor(weight_norm, gradient_norm)

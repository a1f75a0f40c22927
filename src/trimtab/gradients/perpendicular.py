"""PerpendicularGradient: the part of the gradient that only makes the weights longer or shorter is taken off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trimtab.checks import one_of
from trimtab.collectives import is_sharded
from trimtab.gradients.base import EVERY_TENSOR, GradientTransform
from trimtab.gradients.z_score import GRANULARITIES, Granularity
from trimtab.parameters import Entry, Rule
from trimtab.tensors.blocks import blocks, columns
from trimtab.tensors.passes import flat_view, working_dtype
from trimtab.tensors.unit_sums import piece_limit, unit_squares
from trimtab.tensors.units import Item, channel_axis, is_cut, items_of, over_ranks, rows_of, same_layout

PARALLEL = 4.0
"""Units of machine epsilon: what is left of a gradient below so many of them is rounding noise [ours]."""
PIECE = 1 << 17
"""Elements that are summed in float32 on a CPU before float64 takes over."""
TRUSTED = 0.25
"""Squared cosine up to which those float32 sums serve; beyond it all is summed again [ours]."""
_ONE = torch.ones(1, dtype=torch.float32, device="cpu")
LEAST = 1e-20
"""Sums of squares below this may have lost terms to float32's range."""


class PerpendicularGradient(GradientTransform):
    """Perpendicular gradient: what lies along the weights is taken off, so that no step only scales the logits.

    For every tensor (or output row) `g' = g - (<w, g> / <w, w>) w`, then with `rescale` `g' <- g' * ||g|| / ||g'||`:
    `<w, g'> = 0`, and the gradient keeps its norm. A network that fits its training set can lower the cross-entropy by growing
    its weights alone; without that direction it goes on learning.

    Args:
        rescale: give the gradient its norm back, as the authors' code does and their figures were made. Default True; False is
            the formula of the paper's text.
        granularity: `"tensor"` takes whole tensors, `"channel"` each output row alone, which is what weights before a
            normalisation need [ours]. Default `"tensor"`.
        rule: which tensors count. Default all trainable ones, biases too, `Rule(min_ndim=0)`, as in the authors' code.

    Raises:
        ValueError: `granularity` is unknown; (at the step) weight and gradient are sharded differently.
        TypeError: `rescale` is no bool; (at the step) a chosen tensor is complex or its gradient sparse.

    A gradient of which no more than 4 machine epsilons of its norm are left becomes 0 [ours]: it was parallel to the weights,
    as it always is for a single element, and the rest is rounding noise that the authors' class makes as long as the gradient.
    Weights of zero have no direction and keep their gradient. The optimizer's own `weight_decay` comes later and still moves
    along the weights.

    Reference: Prieto et al., arXiv 2501.04697.

    Example:
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> _ = torch.nn.init.constant_(net.weight, 1.0)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> handle = trimtab.attach(optimizer, trimtab.gradients.PerpendicularGradient(rescale=False))
        >>> net.weight.grad = torch.tensor([[3.0, 1.0]])
        >>> optimizer.step()
        >>> net.weight.grad
        tensor([[ 1., -1.]])
    """

    default_rule = EVERY_TENSOR

    def __init__(self, *, rescale: bool = True, granularity: Granularity = "tensor", rule: Rule | None = None) -> None:
        super().__init__(rule)
        if not isinstance(rescale, bool):
            raise TypeError(f"rescale must be True or False, got {rescale!r}")
        self.rescale = rescale
        self.granularity = one_of("granularity", granularity, GRANULARITIES)
        self.needs_axis = self.granularity == "channel"
        self._removed: Tensor | None = None

    def settings(self) -> dict[str, Any]:
        """`rescale` and `granularity`."""
        return {"rescale": self.rescale, "granularity": self.granularity}

    def signals(self) -> dict[str, Tensor]:
        """`removed`: norm of what was taken off, as a share of the gradients' norm (of the units on this rank)."""
        return {} if self._removed is None else {"removed": self._removed}

    def transform_(self, chosen: Sequence[Entry]) -> None:
        """Project every gradient."""
        weights: list[Tensor] = []
        gradients: list[Item] = []
        cut: list[tuple[Tensor, int | None, Tensor, Tensor]] = []
        flat: list[tuple[float, float, float]] = []
        by_channel = self.granularity == "channel"
        for entry in chosen:
            whole = entry.parameter.grad
            assert whole is not None
            if not by_channel and (done := self._project_flat_(whole, entry.parameter)) is not None:
                flat.append(done)
                continue
            weight, gradient = same_layout(entry)
            weight = _like(weight.detach(), gradient)
            if is_cut(entry, whole) if by_channel else is_sharded(whole):
                axis = channel_axis(entry) if by_channel else None
                cut.append((whole, axis, rows_of(weight, axis), rows_of(gradient, axis)))
            elif by_channel:
                weights += [item.tensor for item in items_of(entry, weight)]
                gradients += items_of(entry, gradient)
            else:
                weights.append(weight)
                gradients.append(Item(gradient, None))
        found = [torch.tensor(flat, dtype=torch.float64)] if flat else []
        for block in blocks(gradients):
            others = [other.to(block.rows[0].dtype) for other in block.same_units_of(weights)]
            sums = torch.cat([_sums(row, other) for row, other in zip(block.rows, others, strict=True)])
            usable = _subtract_(block.rows, others, sums)
            self._scale_(block.rows, sums, unit_squares(block.rows), usable)
            block.write_back()
            found.append(sums)
        found += self._project_cut_(cut)
        device = chosen[0].parameter.device
        along = sum(
            (_along(sums).sum().to(device) for sums in found), torch.zeros((), dtype=torch.float64, device=device)
        )
        total = sum((sums[:, 2].sum().to(device) for sums in found), torch.zeros_like(along))
        self._removed = torch.where(total > 0, along / total, 0.0).sqrt()

    def _project_flat_(self, gradient: Tensor, weight: Tensor) -> tuple[float, float, float] | None:
        """Project a whole float32 tensor of a CPU in two readings of both, piece by piece; returns its sums.

        None, and nothing done, where this is not certain: another kind, other layouts, or little left of the gradient.
        """
        kind, size = torch.float32, gradient.numel()
        if (
            gradient.dtype != kind
            or weight.dtype != kind
            or type(gradient) is not Tensor
            or not gradient.is_cpu
            or not size
        ):
            return None
        if gradient.is_contiguous() and weight.is_contiguous():  # most of them: as little as can be
            rows, others = gradient.view(-1), weight.view(-1)
        else:
            rows, others = flat_view(gradient), flat_view(weight)
            if rows.ndim != 1 or weight.stride() != gradient.stride():
                return None
        if size <= PIECE:
            both, along, own = others.dot(others).item(), others.dot(rows).item(), rows.dot(rows).item()
        else:
            both = along = own = 0.0
            pieces = zip(torch.split(rows, PIECE), torch.split(others, PIECE), strict=True)
            for row, other in pieces:  # read once, then from the cache
                both += other.dot(other).item()
                along += other.dot(row).item()
                own += row.dot(row).item()
        if not (both > LEAST and own > LEAST and along * along <= TRUSTED * both * own < math.inf):
            return None
        factor = (1 - along * along / (both * own)) ** -0.5 if self.rescale else 1.0
        # factor g + share (1 w): one reading, one writing
        rows.unsqueeze(0).addr_(_ONE, others, beta=factor, alpha=-factor * along / both)
        return both, along, own

    def _scale_(self, rows: Sequence[Tensor], sums: Tensor, left: Tensor, usable: Tensor) -> None:
        """Give what is left, of squared norm `left`, its norm back; nothing remains of what is noise."""
        share = (left / sums[:, 2:]).sqrt_()
        factor = share.reciprocal() if self.rescale else torch.ones_like(share)
        factor = torch.where(share <= PARALLEL * torch.finfo(rows[0].dtype).eps, 0.0, factor)
        torch._foreach_mul_(list(rows), columns(torch.where(usable, factor, 1.0), rows))

    def _project_cut_(self, cut: Sequence[tuple[Tensor, int | None, Tensor, Tensor]]) -> list[Tensor]:
        """The same for units spread over ranks: one collective for the products of all, one for the norms of what is left."""
        if not cut:
            return []
        owners, axes = [gradient for gradient, *_ in cut], [axis for _, axis, *_ in cut]
        worked = [rows.to(working_dtype(rows)) for *_, rows in cut]
        others = [weight.to(row.dtype) for (*_, weight, _), row in zip(cut, worked, strict=True)]
        sums = over_ranks([_exact(row, other) for row, other in zip(worked, others, strict=True)], owners, axes)
        usable = [_subtract_([row], [other], found) for row, other, found in zip(worked, others, sums, strict=True)]
        left = over_ranks([unit_squares([row]) for row in worked], owners, axes)
        for (*_, rows), row, found, squares, flags in zip(cut, worked, sums, left, usable, strict=True):
            self._scale_([row], found, squares, flags)
            rows.copy_(row)
        return sums


def _like(weight: Tensor, gradient: Tensor) -> Tensor:
    """The weight in the gradient's memory layout, gaps included, so that their rows hold the same elements."""
    if weight.stride() == gradient.stride():
        return weight
    turned = torch.empty_strided(gradient.shape, gradient.stride(), dtype=weight.dtype, device=weight.device)
    return turned.copy_(weight)


def _along(sums: Tensor) -> Tensor:
    """`<w, g>^2 / <w, w>`, 0 where that is no number."""
    return (sums[:, 1].square() / sums[:, 0]).nan_to_num(0.0, 0.0, 0.0)


def _subtract_(rows: Sequence[Tensor], others: Sequence[Tensor], sums: Tensor) -> Tensor:
    """`g <- g - (<w, g> / <w, w>) w` for all units; returns which have such a factor, shape (units, 1).

    Others stay as they are: a gradient of zeros, weights of zero, and those that are not finite.
    """
    factor = (sums[:, 1:2] / sums[:, :1]).to(rows[0].dtype)
    usable = factor.isfinite() & sums.isfinite().all(1, keepdim=True) & (sums[:, 2:] > 0)
    if rows[0].device.type != "cpu" or not bool(usable.all()):  # 0 times infinity is not 0
        flags = [flag > 0 for flag in columns(usable, rows)]
        others = [torch.where(flag, other, 0) for flag, other in zip(flags, others, strict=True)]
        factor = torch.where(usable, factor, 0.0)
    torch._foreach_addcmul_(list(rows), list(others), columns(factor, rows), value=-1)
    return usable


def _products(rows: Tensor, others: Tensor) -> Tensor:
    """`<rows, others>` of each unit from float32 sums, shape (units, 1), float64."""
    if rows.shape[0] == 1 and rows.is_contiguous() and others.is_contiguous():
        pairs = zip(torch.split(rows.view(-1), PIECE), torch.split(others.view(-1), PIECE), strict=True)
        return torch.stack([torch.dot(*pair) for pair in pairs]).sum(0, dtype=torch.float64).view(1, 1)
    return (rows * others).flatten(1).sum(1, keepdim=True).double()


def _exact(rows: Tensor, others: Tensor) -> Tensor:
    """`<w, w>, <w, g>, <g, g>` of each unit in float64, shape (units, 3); `others` are the weights."""
    units, number = rows.shape[0], rows.numel()
    found = torch.zeros(units, 3, dtype=torch.float64, device=rows.device)
    limit = piece_limit(rows.device)
    step, width = max(1, limit * units // max(1, number)), max(1, min(limit, number))
    for first in range(0, units if number else 0, step):
        here = slice(first, first + step)
        for gradient, weight in zip(
            torch.split(rows[here].flatten(1), width, 1), torch.split(others[here].flatten(1), width, 1), strict=True
        ):
            wide, along = gradient.double(), weight.double()
            found[here] += torch.stack([along.square().sum(1), (along * wide).sum(1), wide.square().sum(1)], 1)
    return found


def _sums(rows: Tensor, others: Tensor) -> Tensor:
    """The same; on a CPU from float32 sums where these are certain."""
    if rows.device.type != "cpu" or rows.dtype == torch.float64:
        return _exact(rows, others)
    sums = torch.cat([_products(others, others), _products(others, rows), _products(rows, rows)], 1)
    ends = sums[:, 0] * sums[:, 2]
    sound = sums.isfinite().all(1) & (sums[:, 1].square() <= TRUSTED * ends) & (sums[:, ::2] > LEAST).all(1)
    if not bool(sound.all()):
        again = sound.logical_not().nonzero().squeeze(1)
        sums[again] = _exact(rows[again], others[again])
    return sums

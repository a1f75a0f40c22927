"""AdamP and SGDP: the step of weights whose scale does not matter is kept perpendicular to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, flag, non_negative, number, positive
from trimtab.collectives import is_sharded
from trimtab.optimizers.foreach import ForeachOptimizer, Lists, adam_moments_, learning_rate, two_decays
from trimtab.parameters import entries
from trimtab.tensors.projection import row_products, share_along

TOGETHER = 1 << 16
"""Elements up to which tensors of one shape are stacked, so that one kernel serves all of them and reads the cache."""


class Invariant(NamedTuple):
    """Weights whose scale does not matter, as they were found at a step.

    Attributes:
        groups: axis of the outputs and positions of those that are worked on together.
        rows: their weights as rows, where all of a group are among them; else None.
        norms: of all their rows, in this order.
        lengths: rows of each.
        whole: which are invariant as a whole alone, shape (weights,); the others are so row by row.
    """

    groups: list[tuple[int, list[int]]]
    rows: list[Tensor | None]
    norms: Tensor
    lengths: list[int]
    whole: Tensor

    @property
    def members(self) -> list[int]:
        """Positions of all."""
        return [at for _, members in self.groups for at in members]


class ProjectedOptimizer(ForeachOptimizer):
    """What AdamP and SGDP share: which weights are scale-invariant, judged at every step."""

    def __init__(
        self,
        params: Iterable[Any],
        defaults: dict[str, Any],
        model: nn.Module | None,
        *,
        foreach: bool | None,
        maximize: bool,
    ) -> None:
        self._axes = {entry.parameter: entry.output_axis for entry in entries(model)} if model is not None else {}
        super().__init__(params, defaults, foreach=foreach, maximize=maximize)

    def check(self, group: dict[str, Any], step: int, owners: Sequence[Tensor]) -> None:
        """ValueError for a sharded weight of two or more dimensions."""
        for owner in owners:
            if owner.ndim > 1 and is_sharded(owner):
                raise ValueError(
                    f"{type(self).__name__} judges whole tensors and does not take sharded weights such as one of "
                    f"{tuple(owner.shape)}; use AdamW or SGD for them"
                )

    def judge(
        self, group: dict[str, Any], weights: Sequence[Tensor], grads: Sequence[Tensor], owners: Sequence[Tensor]
    ) -> Invariant | None:
        """The scale-invariant weights; None for none. The device is asked once for all."""
        groups = self._groups(owners)
        if not groups:
            return None
        along, own, norms, together = [], [], [], []
        for axis, members in groups:
            g, w = (_rows([of[at] for at in members], axis) for of in (grads, weights))
            along.append(row_products(g, w))
            own.append(torch.linalg.vector_norm(g, dim=1))
            norms.append(torch.linalg.vector_norm(w, dim=1))
            together.append(w)
        members = [at for _, some in groups for at in some]
        axes = [axis for axis, some in groups for _ in some]
        rows = [owners[at].shape[axis] for at, axis in zip(members, axes, strict=True)]
        sizes = [owners[at].numel() for at in members]
        norm = torch.cat(norms)
        answers = _scale_invariant(torch.cat(along), torch.cat(own), norm, rows, sizes, group["delta"], group["eps"])
        by_row, by_whole = answers.tolist()
        known = {at: row for at, row, whole in zip(members, by_row, by_whole, strict=True) if row or whole}
        if not known:
            return None
        lengths = [number for at, number in zip(members, rows, strict=True) if at in known]
        if len(known) < len(members):
            norm = torch.cat([of for at, of in zip(members, norm.split_with_sizes(rows), strict=True) if at in known])
        kept = [
            (axis, [at for at in some if at in known], len(some), w)
            for (axis, some), w in zip(groups, together, strict=True)
        ]
        whole = torch.tensor([not row for row in known.values()], device=norm.device)
        return Invariant(
            [(axis, left) for axis, left, _, _ in kept if left],
            [w if len(left) == number else None for _, left, number, w in kept if left],
            norm, lengths, whole,
        )  # fmt: skip

    def _groups(self, owners: Sequence[Tensor]) -> list[tuple[int, list[int]]]:
        """Weights of two or more dimensions: axis of their outputs and positions of a few of one shape."""
        alike: dict[tuple[Any, ...], list[int]] = {}
        for at, owner in enumerate(owners):
            if owner.ndim < 2 or not owner.numel():
                continue
            axis = self._axes.get(owner) or 0
            alike.setdefault((owner.shape, axis), []).append(at)
        found = []
        for (shape, axis), members in alike.items():
            number = max(1, TOGETHER // math.prod(shape))
            found += [(axis, members[start : start + number]) for start in range(0, len(members), number)]
        return found


def _rows(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors of one shape as one of shape (all rows, elements of a row); a view of a single one where it can be."""
    if axis:
        tensors = [tensor.movedim(axis, 0) for tensor in tensors]
    return (tensors[0] if len(tensors) == 1 else torch.cat([*tensors])).flatten(1)


def _scale_invariant(
    along: Tensor, own: Tensor, weight: Tensor, rows: Sequence[int], sizes: Sequence[int], delta: float, eps: float
) -> Tensor:
    """Of each weight, whether its rows are scale-invariant and whether it is as a whole; shape (2, weights).

    Args:
        along: `<g, w>` of all rows of all weights.
        own: norms of the gradients' rows.
        weight: norms of the weights' rows.
        rows: of each weight.
        sizes: elements of each weight.
        delta: how perpendicular a gradient must be.
        eps: least product of norms.
    """
    along, own, weight = (of.to(torch.promote_types(of.dtype, torch.float32)) for of in (along, own, weight))
    lengths = torch.tensor(rows, device=along.device)
    numbers = torch.tensor([[size / row for size, row in zip(sizes, rows, strict=True)], sizes], dtype=along.dtype)
    limits = delta / numbers.to(along.device).sqrt()
    of_rows = torch.repeat_interleave(limits[0], lengths, output_size=len(along))
    oblique = (along.abs() >= of_rows * (own * weight).clamp_(min=eps)) | along.isnan()
    columns = torch.stack([along, own.square(), weight.square(), oblique.to(along.dtype)], 1)
    total, gradients, weights, found = torch.segment_reduce(
        columns, "sum", lengths=lengths, axis=0, unsafe=True
    ).unbind(1)
    whole = total.abs() < limits[1] * (gradients * weights).sqrt_().clamp_(min=eps)
    return torch.stack([found == 0, whole])


def _projected(
    found: Invariant, steps: Sequence[Tensor], weights: Sequence[Tensor], eps: float, *, in_place: bool = False
) -> list[Tensor]:
    """`u - w^ <w^, u>` for the steps of these weights, by row or as a whole, in the order of `found.members`."""
    members, parts = found.members, []
    of_member = dict(zip(members, steps, strict=True))
    for (axis, some), rows in zip(found.groups, found.rows, strict=True):
        w = _rows([weights[at] for at in some], axis) if rows is None else rows
        parts.append(row_products(_rows([of_member[at] for at in some], axis), w))
    along = torch.cat(parts)
    wide = torch.promote_types(along.dtype, torch.float32)
    own, norms = along.to(wide), found.norms.to(wide)
    lengths = torch.tensor(found.lengths, device=own.device)
    both = torch.segment_reduce(torch.stack([own, norms.square()], 1), "sum", lengths=lengths, axis=0, unsafe=True)
    joint, squares, whole = (
        torch.repeat_interleave(of, lengths, output_size=len(own)) for of in (*both.unbind(1), found.whole)
    )
    own, norms = torch.where(whole, joint, own), torch.where(whole, squares.sqrt(), norms)
    shares = share_along(own, norms, eps).to(along.dtype).split_with_sizes(found.lengths)
    axes = [axis for axis, some in found.groups for _ in some]
    columns = [
        share.view(*[1] * axis, -1, *[1] * (weights[at].ndim - axis - 1))
        for at, axis, share in zip(members, axes, shares, strict=True)
    ]
    places: list[Tensor | None] = list(steps) if in_place else [None] * len(steps)
    return [
        torch.addcmul(step, weights[at], column, value=-1, out=place)
        for step, at, column, place in zip(steps, members, columns, places, strict=True)
    ]


def _decay_(params: list[Tensor], rate: float, slower: Mapping[int, Tensor], ratio: float) -> None:
    """`w <- (1 - rate) w`, with `rate * ratio` for those at the positions of `slower`."""
    if rate:
        torch._foreach_mul_(params, [1 - rate * (ratio if at in slower else 1) for at in range(len(params))])


class AdamP(ProjectedOptimizer):
    """AdamP: AdamW without the part of the step along weights whose scale does not matter.

    Adam's step `u = m / (sqrt(v) / sqrt(1 - b2^t) + eps)`. For a weight of two or more dimensions, seen first by output rows,
    then as a whole: where `max |cos(g, w)| < delta / sqrt(elements of a row)`, its step becomes `u - w^ <w^, u>` with
    `w^ = w / (||w|| + eps)`, and its decay is multiplied by `wd_ratio`. Then
    `w <- (1 - lr weight_decay) w - lr / (1 - b1^t) u`. Weights before a normalisation are met so: their gradient is
    perpendicular to them, momentum is not, and would only make them longer.

    Args:
        params: parameters, groups, or (name, parameter) pairs.
        lr: learning rate, 0 or more. Default 1e-3 (authors' code).
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999).
        eps: added to the denominators; above 0. Default 1e-8.
        weight_decay: decoupled, 0 or more. Default 0.
        delta: how perpendicular a gradient must be, as above; above 0. Default 0.1 (paper).
        wd_ratio: of the decay of projected weights, in [0, 1]. Default 0.1 (paper).
        nesterov: `u` from `b1 m + (1 - b1) g`.
        foreach: None or True: all tensors together; False: one at a time.
        maximize: step up the gradient.
        model: says which axis of a weight its outputs are; without it the first (as in the authors' code).

    Raises:
        ValueError: a number out of range; (at the step) a sharded weight of two or more dimensions.
        TypeError: (at the step) a complex parameter or a sparse gradient.

    Reference: Heo et al., arXiv 2006.08217.

    Example:
        >>> net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, elementwise_affine=False))
        >>> optimizer = AdamP(net.parameters(), lr=0.1)
        >>> net(torch.ones(2, 3)).square().sum().backward()
        >>> optimizer.step()
    """

    held = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        *,
        nesterov: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        defaults = {
            "lr": learning_rate(lr),
            "betas": two_decays(betas),
            "eps": positive("eps", eps),
            "weight_decay": non_negative("weight_decay", weight_decay),
            "delta": positive("delta", delta),
            "wd_ratio": number("wd_ratio", wd_ratio, least=0, most=1),
            "nesterov": flag("nesterov", nesterov),
        }
        super().__init__(params, defaults, model, foreach=foreach, maximize=maximize)

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
        first, second = states["exp_avg"], states["exp_avg_sq"]
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        adam_moments_(first, second, grads, group["betas"])
        below, correction = list(torch._foreach_sqrt(second)), math.sqrt(1 - beta2**step)
        torch._foreach_add_(below, group["eps"] * correction)
        above = list(torch._foreach_lerp(first, grads, 1 - beta1)) if group["nesterov"] else first
        size = lr * correction / (1 - beta1**step)
        found = self.judge(group, params, grads, owners)
        steps: dict[int, Tensor] = {}
        if found is not None:
            own = [torch.div(above[at], below[at], out=below[at]) for at in found.members]
            steps = dict(zip(found.members, _projected(found, own, params, group["eps"], in_place=True), strict=True))
        _decay_(params, lr * group["weight_decay"], steps, group["wd_ratio"])
        if len(steps) < len(params):
            plain = [at for at in range(len(params)) if at not in steps]
            own, numerators, denominators = ([of[at] for at in plain] for of in (params, above, below))
            torch._foreach_addcdiv_(own, numerators, denominators, -size)
        if steps:
            torch._foreach_add_([params[at] for at in steps], list(steps.values()), alpha=-size)


class SGDP(ProjectedOptimizer):
    """SGDP: SGD with momentum, without the part of the step along weights whose scale does not matter.

    `b <- momentum b + (1 - dampening) g`, `u = b` (nesterov: `g + momentum b`); `u` and the decay are changed for weights of
    two or more dimensions as in `AdamP`; then `w <- (1 - lr weight_decay / (1 - momentum)) w - lr u`.

    Args:
        params: parameters, groups, or (name, parameter) pairs.
        lr: learning rate, 0 or more. Default 0.1 [ours]; the authors' code has none.
        momentum: in [0, 1). Default 0.
        dampening: of the gradient, in [0, 1). Default 0.
        weight_decay: decoupled, 0 or more. Default 0. It is divided by `1 - momentum`, so that it has the size of L2 decay.
        delta: how perpendicular a gradient must be; above 0. Default 0.1 (paper).
        wd_ratio: of the decay of projected weights, in [0, 1]. Default 0.1 (paper).
        eps: added to norms; above 0. Default 1e-8.
        nesterov: Nesterov momentum.
        foreach: None or True: all tensors together; False: one at a time.
        maximize: step up the gradient.
        model: says which axis of a weight its outputs are; without it the first (as in the authors' code).

    Raises:
        ValueError: a number out of range; (at the step) a sharded weight of two or more dimensions.
        TypeError: (at the step) a complex parameter or a sparse gradient.

    The momentum itself is not projected, as the paper has it; the package `adamp` 0.3 projects it too, by an alias.

    Reference: Heo et al., arXiv 2006.08217.

    Example:
        >>> net = nn.Linear(3, 4)
        >>> optimizer = SGDP(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    """

    held = ("momentum_buffer",)

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 0.1,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        eps: float = 1e-8,
        *,
        nesterov: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        model: nn.Module | None = None,
    ) -> None:
        defaults = {
            "lr": learning_rate(lr),
            "momentum": below_one("momentum", momentum),
            "dampening": below_one("dampening", dampening),
            "weight_decay": non_negative("weight_decay", weight_decay),
            "delta": positive("delta", delta),
            "wd_ratio": number("wd_ratio", wd_ratio, least=0, most=1),
            "eps": positive("eps", eps),
            "nesterov": flag("nesterov", nesterov),
        }
        super().__init__(params, defaults, model, foreach=foreach, maximize=maximize)

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
        buffer, lr, momentum = states["momentum_buffer"], float(group["lr"]), group["momentum"]
        torch._foreach_mul_(buffer, momentum)
        torch._foreach_add_(buffer, grads, alpha=1 - group["dampening"])
        whole = list(torch._foreach_add(grads, buffer, alpha=momentum)) if group["nesterov"] else buffer
        found = self.judge(group, params, grads, owners)
        steps: dict[int, Tensor] = {}
        if found is not None:
            own = [whole[at] for at in found.members]
            steps = dict(zip(found.members, _projected(found, own, params, group["eps"]), strict=True))
        _decay_(params, lr * group["weight_decay"] / (1 - momentum), steps, group["wd_ratio"])
        torch._foreach_add_(params, [steps.get(at, own) for at, own in enumerate(whole)], alpha=-lr)

"""AdamP and SGDP: the step of weights whose scale does not matter is kept perpendicular to them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, flag, non_negative, number, positive
from trimtab.collectives import is_sharded
from trimtab.optimizers.foreach import (
    ForeachOptimizer,
    Lists,
    adam_moments_,
    cached_runs,
    learning_rate,
    two_decays,
)
from trimtab.parameters import entries
from trimtab.tensors.projection import row_products, share_along

TOGETHER = 1 << 16
"""Elements up to which tensors of one shape are stacked, so that one kernel serves all of them and reads the cache."""


class Plan(NamedTuple):
    """How weights are judged together: what does not change from step to step.

    Attributes:
        owners: the parameters it is for.
        groups: axis of the outputs and positions of those of one shape that are worked on together.
        members: positions of all, in this order.
        rows: of each.
        lengths: the same as a tensor.
        roots: square roots of the elements of a row and of the whole, shape (2, weights).
    """

    owners: list[Tensor]
    groups: list[tuple[int, list[int]]]
    members: list[int]
    rows: list[int]
    lengths: Tensor
    roots: Tensor

    def is_for(self, owners: Sequence[Tensor]) -> bool:
        """Whether these are the parameters."""
        return len(owners) == len(self.owners) and all(map(operator.is_, owners, self.owners))


class Invariant(NamedTuple):
    """Weights whose scale does not matter, as they were found at a step.

    Attributes:
        groups: axis of the outputs and positions of those that are worked on together.
        rows: their weights as rows, where all of a group are among them; else None.
        norms: of all their rows, in this order.
        lengths: rows of each, shape (weights,).
        whole: which are invariant as a whole alone; the others are so row by row.
    """

    groups: list[tuple[int, list[int]]]
    rows: list[Tensor | None]
    norms: Tensor
    lengths: Tensor
    whole: list[bool]

    def members(self) -> list[int]:
        """Positions of all."""
        return [at for _, some in self.groups for at in some]

    def parts(self, weights: Sequence[Tensor]) -> list[Invariant]:
        """The same in parts that a CPU's cache holds."""
        pairs = zip(self.rows, self.groups, strict=True)
        firsts = [weights[some[0]] if rows is None else rows for rows, (_, some) in pairs]
        runs = cached_runs(firsts)
        if len(runs) == 1:
            return [self]
        found, row, member = [], 0, 0
        for run in runs:
            groups = self.groups[run]
            rows = sum(weights[at].shape[axis] for axis, some in groups for at in some)
            number = sum(len(some) for _, some in groups)
            of_rows, of_members = slice(row, row + rows), slice(member, member + number)
            found.append(
                Invariant(groups, self.rows[run], self.norms[of_rows], self.lengths[of_members], self.whole[of_members])
            )
            row, member = of_rows.stop, of_members.stop
        return found


class Steps(NamedTuple):
    """Steps `size u` of some weights, with `u = above / below`, or `u = above`.

    Attributes:
        above: may be the optimizer's own state.
        below: used up; None for 1.
        size: of all.
    """

    above: list[Tensor]
    below: list[Tensor] | None
    size: float

    def take_(self, weights: list[Tensor]) -> None:
        """Move the weights."""
        if self.below is None:
            torch._foreach_add_(weights, self.above, alpha=-self.size)
        else:
            torch._foreach_addcdiv_(weights, self.above, self.below, -self.size)

    def rows(self, places: Sequence[int], axis: int) -> tuple[Tensor, bool]:
        """`u` at some places as rows of that axis, and whether it may be written to."""
        above = _rows(self.above, places, axis)
        if self.below is None:
            return above, len(places) > 1
        below = _rows(self.below, places, axis)
        return torch.div(above, below, out=below), True


class ProjectedOptimizer(ForeachOptimizer):
    """What AdamP and SGDP share: which weights are scale-invariant, judged at every step, and how they are moved."""

    uncopied = ("_plans",)
    at_once = True  # weights are judged by a few operations for all of them

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

    def decay_of(self, group: dict[str, Any]) -> float:
        """Share of a weight that its decay takes off."""
        raise NotImplementedError

    def steps_(self, group: dict[str, Any], step: int, grads: list[Tensor], states: Lists) -> Steps:
        """The states of some weights brought up to date; gives their steps before any projection."""
        raise NotImplementedError

    def update(
        self,
        group: dict[str, Any],
        step: int,
        params: list[Tensor],
        grads: list[Tensor],
        states: Lists,
        owners: Sequence[Tensor],
    ) -> None:
        """One step of these parameters, as many at a time as a CPU's cache holds."""
        found = self.judge(group, params, grads, owners)
        slower = found.parts(params) if found is not None else []
        taken = {at for part in slower for at in part.members()}
        plain = [at for at in range(len(params)) if at not in taken]
        runs: list[tuple[list[int], Invariant | None]] = [
            *((plain[run], None) for run in cached_runs([params[at] for at in plain])),
            *((part.members(), part) for part in slower),
        ]
        for some, part in runs:
            own = [params[at] for at in some]
            held = {name: [of[at] for at in some] for name, of in states.items()}
            steps = self.steps_(group, step, [grads[at] for at in some], held)
            rate = self.decay_of(group)
            if part is not None:
                steps = Steps(_projected(part, steps, own, group["eps"]), None, steps.size)
                rate *= group["wd_ratio"]
            if rate:
                torch._foreach_mul_(own, 1 - rate)
            steps.take_(own)

    def judge(
        self, group: dict[str, Any], weights: Sequence[Tensor], grads: Sequence[Tensor], owners: Sequence[Tensor]
    ) -> Invariant | None:
        """The scale-invariant weights; None for none. The device is asked once for all."""
        plan = self._plan(owners)
        if not plan.groups:
            return None
        along, own, norms, together = [], [], [], []
        for axis, members in plan.groups:
            g, w = (_rows(of, members, axis) for of in (grads, weights))
            along.append(row_products(g, w))
            own.append(torch.linalg.vector_norm(g, dim=1))
            norms.append(torch.linalg.vector_norm(w, dim=1))
            together.append(w)
        norm = torch.cat(norms)
        by_row, by_whole = _scale_invariant(torch.cat(along), torch.cat(own), norm, plan, group["delta"], group["eps"])
        known = {at: row for at, row, whole in zip(plan.members, by_row, by_whole, strict=True) if row or whole}
        if not known:
            return None
        whole = [not row for row in known.values()]
        if len(known) == len(plan.members):
            return Invariant(plan.groups, list(together), norm, plan.lengths, whole)
        taken = [at in known for at in plan.members]
        lengths = plan.lengths[torch.tensor(taken, device=norm.device)]
        norm = torch.cat([of for of, take in zip(norm.split_with_sizes(plan.rows), taken, strict=True) if take])
        kept = [
            (axis, [at for at in some if at in known], len(some), w)
            for (axis, some), w in zip(plan.groups, together, strict=True)
        ]
        return Invariant(
            [(axis, left) for axis, left, _, _ in kept if left],
            [w if len(left) == number else None for _, left, number, w in kept if left],
            norm, lengths, whole,
        )  # fmt: skip

    def _plan(self, owners: Sequence[Tensor]) -> Plan:
        """The plan for these parameters, made when they first come together."""
        plans: dict[tuple[int, int], Plan] = self.__dict__.setdefault("_plans", {})
        key = len(owners), id(owners[0])
        if key not in plans or not plans[key].is_for(owners):
            groups = self._groups(owners)
            axes = {at: axis for axis, members in groups for at in members}
            members = list(axes)
            rows = [owners[at].shape[axis] for at, axis in axes.items()]
            sizes = [owners[at].numel() for at in members]
            numbers = [[size / number for size, number in zip(sizes, rows, strict=True)], sizes]
            device, dtype = owners[0].device, torch.promote_types(owners[0].dtype, torch.float32)
            roots = torch.tensor(numbers, dtype=dtype).sqrt().to(device)
            plans[key] = Plan(list(owners), groups, members, rows, torch.tensor(rows, device=device), roots)
        return plans[key]

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


def _rows(tensors: Sequence[Tensor], members: Sequence[int], axis: int) -> Tensor:
    """Some tensors, of one shape, as one of shape (all rows, elements of a row); a view of a single one where it can be."""
    some = [tensors[at] for at in members]
    if axis:
        some = [tensor.movedim(axis, 0) for tensor in some]
    return (some[0] if len(some) == 1 else torch.cat(some)).flatten(1)


def _scale_invariant(
    along: Tensor, own: Tensor, weight: Tensor, plan: Plan, delta: float, eps: float
) -> list[list[bool]]:
    """Of each weight, whether its rows are scale-invariant, and whether it is as a whole.

    Args:
        along: `<g, w>` of all rows of all weights.
        own: norms of the gradients' rows.
        weight: norms of the weights' rows.
        plan: whose rows they are.
        delta: how perpendicular a gradient must be.
        eps: least product of norms.
    """
    along, own, weight = (of.to(plan.roots.dtype) for of in (along, own, weight))
    limits = delta / plan.roots
    of_rows = torch.repeat_interleave(limits[0], plan.lengths, output_size=along.numel())
    oblique = (along.abs() >= of_rows * (own * weight).clamp_(min=eps)) | along.isnan()
    columns = torch.stack([along, own.square(), weight.square(), oblique.to(along.dtype)], 1)
    total, gradients, weights, found = torch.segment_reduce(
        columns, "sum", lengths=plan.lengths, axis=0, unsafe=True
    ).unbind(1)
    whole = total.abs() < limits[1] * (gradients * weights).sqrt_().clamp_(min=eps)
    answers: list[list[bool]] = torch.stack([found == 0, whole]).tolist()
    return answers


def _projected(found: Invariant, steps: Steps, weights: Sequence[Tensor], eps: float) -> list[Tensor]:
    """`u - w^ <w^, u>` for the steps of these weights, by row or as a whole; all in the order of `found.members()`."""
    worked, parts, start = [], [], 0
    for (axis, some), rows in zip(found.groups, found.rows, strict=True):
        places = range(start, start + len(some))
        w = _rows(weights, places, axis) if rows is None else rows
        u, free = steps.rows(places, axis)
        worked.append((u, w, free))
        parts.append(row_products(u, w))
        start = places.stop
    along = torch.cat(parts)
    wide = torch.promote_types(along.dtype, torch.float32)
    own, norms = along.to(wide), found.norms.to(wide)
    if any(found.whole):
        both = torch.stack([own, norms.square()], 1)
        both = torch.segment_reduce(both, "sum", lengths=found.lengths, axis=0, unsafe=True)
        flags = torch.tensor(found.whole, device=own.device)
        joint, squares, whole = (
            torch.repeat_interleave(of, found.lengths, output_size=own.numel()) for of in (*both.unbind(1), flags)
        )
        own, norms = torch.where(whole, joint, own), torch.where(whole, squares.sqrt(), norms)
    shares = share_along(own, norms, eps).to(along.dtype)[:, None].split_with_sizes([u.shape[0] for u, *_ in worked])
    projected: list[Tensor] = []
    for (axis, some), (u, w, free), share in zip(found.groups, worked, shares, strict=True):
        left = torch.addcmul(u, w, share, value=-1, out=u if free else None)
        first = weights[len(projected)]
        each = left.view(len(some), *(first.movedim(axis, 0) if axis else first).shape).unbind()
        projected += [part.movedim(0, axis) for part in each] if axis else each
    return projected


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

    def decay_of(self, group: dict[str, Any]) -> float:
        """Decoupled, as AdamW's."""
        return float(group["lr"]) * float(group["weight_decay"])

    def steps_(self, group: dict[str, Any], step: int, grads: list[Tensor], states: Lists) -> Steps:
        """Moments brought up to date; `u` but for a factor, and the size of both."""
        first, second = states["exp_avg"], states["exp_avg_sq"]
        beta1, beta2 = group["betas"]
        adam_moments_(first, second, grads, group["betas"])
        below, correction = list(torch._foreach_sqrt(second)), math.sqrt(1 - beta2**step)
        torch._foreach_add_(below, group["eps"] * correction)
        above = list(torch._foreach_lerp(first, grads, 1 - beta1)) if group["nesterov"] else first
        return Steps(above, below, float(group["lr"]) * correction / (1 - beta1**step))


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

    def decay_of(self, group: dict[str, Any]) -> float:
        """Of the size of L2 decay."""
        decay: float = float(group["lr"]) * group["weight_decay"] / (1 - group["momentum"])
        return decay

    def steps_(self, group: dict[str, Any], step: int, grads: list[Tensor], states: Lists) -> Steps:
        """Momentum brought up to date."""
        buffer = states["momentum_buffer"]
        torch._foreach_mul_(buffer, group["momentum"])
        torch._foreach_add_(buffer, grads, alpha=1 - group["dampening"])
        above = list(torch._foreach_add(grads, buffer, alpha=group["momentum"])) if group["nesterov"] else buffer
        return Steps(above, None, float(group["lr"]))

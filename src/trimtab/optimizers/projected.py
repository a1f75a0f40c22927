"""What AdamP and SGDP share: the step of weights whose scale does not matter is kept perpendicular to them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from trimtab.checks import flag, non_negative, number, positive
from trimtab.collectives import is_sharded
from trimtab.optimizers.foreach import ForeachOptimizer, Lists, cached_runs
from trimtab.optimizers.scale_invariance import Invariant, Plan, judge, plan_for, rows_of_axis
from trimtab.parameters import entries
from trimtab.tensors.projection import row_products, share_along


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
        above = rows_of_axis(self.above, places, axis)
        if self.below is None:
            return above, len(places) > 1
        below = rows_of_axis(self.below, places, axis)
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
        eps: float,
        weight_decay: float,
        delta: float,
        wd_ratio: float,
        nesterov: bool,
        foreach: bool | None,
        maximize: bool,
    ) -> None:
        self._axes = {entry.parameter: entry.output_axis for entry in entries(model)} if model is not None else {}
        shared = {
            "eps": positive("eps", eps),
            "weight_decay": non_negative("weight_decay", weight_decay),
            "delta": positive("delta", delta),
            "wd_ratio": number("wd_ratio", wd_ratio, least=0, most=1),
            "nesterov": flag("nesterov", nesterov),
        }
        super().__init__(params, defaults | shared, foreach=foreach, maximize=maximize)

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
        found = judge(self._plan(owners), params, grads, group["delta"], group["eps"])
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

    def _plan(self, owners: Sequence[Tensor]) -> Plan:
        """The plan for these parameters, made when they first come together, or have become others."""
        plans: dict[tuple[int, int], Plan] = self.__dict__.setdefault("_plans", {})
        key = len(owners), id(owners[0])
        if key not in plans or not plans[key].is_for(owners):
            here = {id(parameter) for group in self.param_groups for parameter in group["params"]}
            for old in [name for name, plan in plans.items() if any(id(owner) not in here for owner in plan.owners)]:
                del plans[old]  # of parameters that have gone, which else would live on
            plans[key] = plan_for(owners, self._axes)
        return plans[key]


def _projected(found: Invariant, steps: Steps, weights: Sequence[Tensor], eps: float) -> list[Tensor]:
    """`u - w^ <w^, u>` for the steps of these weights, by row or as a whole; all in the order of `found.members()`."""
    worked, parts, start = [], [], 0
    for (axis, some), rows in zip(found.groups, found.rows, strict=True):
        places = range(start, start + len(some))
        w = rows_of_axis(weights, places, axis) if rows is None else rows
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

"""Which weights do not change a network's output when they are scaled, by how perpendicular their gradients are (AdamP)."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trimtab.optimizers.foreach import cached_runs
from trimtab.tensors.projection import row_products

TOGETHER = 1 << 16
"""Elements up to which tensors of one shape are stacked, so that one kernel serves all of them and reads the cache."""


class Plan(NamedTuple):
    """How weights are judged together: what does not change from step to step.

    Attributes:
        owners: the parameters it is for.
        shapes: of each.
        groups: axis of the outputs and positions of those of one shape that are worked on together.
        members: positions of all, in this order.
        rows: of each.
        lengths: the same as a tensor.
        roots: square roots of the elements of a row and of the whole, shape (2, weights).
    """

    owners: list[Tensor]
    shapes: list[torch.Size]
    groups: list[tuple[int, list[int]]]
    members: list[int]
    rows: list[int]
    lengths: Tensor
    roots: Tensor

    def is_for(self, owners: Sequence[Tensor]) -> bool:
        """Whether these are the parameters, all of them, and still of these shapes."""
        same = len(owners) == len(self.owners) and all(map(operator.is_, owners, self.owners))
        return same and [owner.shape for owner in owners] == self.shapes


def plan_for(owners: Sequence[Tensor], axes: Mapping[Tensor, int | None]) -> Plan:
    """The plan for these parameters, of which `axes` knows the outputs' axis (0 where it does not)."""
    groups = _groups(owners, axes)
    found = {at: axis for axis, members in groups for at in members}
    members = list(found)
    rows = [owners[at].shape[axis] for at, axis in found.items()]
    sizes = [owners[at].numel() for at in members]
    numbers = [[size / number for size, number in zip(sizes, rows, strict=True)], sizes]
    device, dtype = owners[0].device, torch.promote_types(owners[0].dtype, torch.float32)
    roots = torch.tensor(numbers, dtype=dtype).sqrt().to(device)
    shapes = [owner.shape for owner in owners]
    return Plan(list(owners), shapes, groups, members, rows, torch.tensor(rows, device=device), roots)


def _groups(owners: Sequence[Tensor], axes: Mapping[Tensor, int | None]) -> list[tuple[int, list[int]]]:
    """Weights of two or more dimensions: axis of their outputs and positions of a few of one shape."""
    alike: dict[tuple[Any, ...], list[int]] = {}
    for at, owner in enumerate(owners):
        if owner.ndim < 2 or not owner.numel():
            continue
        alike.setdefault((owner.shape, axes.get(owner) or 0), []).append(at)
    found = []
    for (shape, axis), members in alike.items():
        number = max(1, TOGETHER // math.prod(shape))
        found += [(axis, members[start : start + number]) for start in range(0, len(members), number)]
    return found


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


def rows_of_axis(tensors: Sequence[Tensor], members: Sequence[int], axis: int) -> Tensor:
    """Some tensors, of one shape, as one of shape (all rows, elements of a row); a view of a single one where it can be."""
    some = [tensors[at] for at in members]
    if axis:
        some = [tensor.movedim(axis, 0) for tensor in some]
    return (some[0] if len(some) == 1 else torch.cat(some)).flatten(1)


def judge(plan: Plan, weights: Sequence[Tensor], grads: Sequence[Tensor], delta: float, eps: float) -> Invariant | None:
    """The scale-invariant weights; None for none. The device is asked once for all.

    Args:
        plan: for these weights.
        weights: all of them, those of one dimension too.
        grads: their gradients.
        delta: how perpendicular a gradient must be.
        eps: least product of norms.
    """
    if not plan.groups:
        return None
    along, own, norms, together = [], [], [], []
    for axis, members in plan.groups:
        g, w = (rows_of_axis(of, members, axis) for of in (grads, weights))
        along.append(row_products(g, w))
        own.append(torch.linalg.vector_norm(g, dim=1))
        norms.append(torch.linalg.vector_norm(w, dim=1))
        together.append(w)
    norm = torch.cat(norms)
    by_row, by_whole = _scale_invariant(torch.cat(along), torch.cat(own), norm, plan, delta, eps)
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

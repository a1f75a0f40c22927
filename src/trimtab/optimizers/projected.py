"""AdamP and SGDP: the step of weights whose scale does not matter is kept perpendicular to them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trimtab.checks import below_one, flag, non_negative, number, positive
from trimtab.collectives import is_sharded
from trimtab.optimizers.foreach import ForeachOptimizer, Lists, adam_moments_, learning_rate, two_decays
from trimtab.parameters import entries
from trimtab.tensors.projection import project_out, row_products

TOGETHER = 1 << 16
"""Elements up to which tensors of one shape are stacked, so that one kernel serves all of them and reads the cache."""


class ProjectedOptimizer(ForeachOptimizer):
    """What AdamP and SGDP share: which weights are scale-invariant, judged at every step, and the projection of their step."""

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

    def project(
        self,
        group: dict[str, Any],
        weights: Sequence[Tensor],
        grads: Sequence[Tensor],
        steps: list[Tensor],
        owners: Sequence[Tensor],
    ) -> list[float]:
        """Project the steps of scale-invariant weights, in the list; returns what each weight's decay is multiplied by."""
        ratios = [1.0] * len(steps)
        alike: dict[tuple[Any, ...], list[int]] = {}
        for at, owner in enumerate(owners):
            if owner.ndim < 2 or not owner.numel():
                continue
            axis = self._axes.get(owner) or 0
            alike.setdefault((owner.shape, axis), []).append(at)
        judged = []
        for axis, members in _some_at_a_time(alike):
            g, w = (_rows([of[at] for at in members], axis) for of in (grads, weights))
            judged.append((axis, members, w, *_scale_invariant(g, w, group["delta"], group["eps"])))
        # the device is asked once for all
        answers = iter(
            torch.cat([flags for *_, row, whole in judged for flags in (row, whole)]).tolist() if judged else []
        )
        for axis, members, w, norms, *_ in judged:
            by_row, by_whole = [next(answers) for _ in members], [next(answers) for _ in members]
            for taken in ([k for k, is_so in enumerate(by_row) if is_so], _only(by_whole, by_row)):
                if not taken:
                    continue
                u, d, n = _rows([steps[members[k]] for k in taken], axis), w, norms
                if len(taken) < len(members):
                    some = torch.tensor(taken, device=w.device)
                    d, n = w[some], norms[some]
                flat = (-1, u.shape[2]) if by_row[taken[0]] else (len(taken), -1)
                n = n.flatten() if by_row[taken[0]] else n.norm(dim=1)
                found = project_out(u.reshape(flat), d.reshape(flat), group["eps"], n).view(u.shape)
                moved = steps[members[taken[0]]].movedim(axis, 0).shape
                for k, part in zip(taken, found.view(-1, *moved).unbind(), strict=True):
                    steps[members[k]] = part.movedim(0, axis)
                    ratios[members[k]] = group["wd_ratio"]
        return ratios


def _some_at_a_time(alike: Mapping[tuple[torch.Size, int], list[int]]) -> Iterator[tuple[int, list[int]]]:
    for (shape, axis), members in alike.items():
        number = max(1, TOGETHER // math.prod(shape))
        for start in range(0, len(members), number):
            yield axis, members[start : start + number]


def _only(these: Sequence[bool], others: Sequence[bool]) -> list[int]:
    return [k for k, (this, other) in enumerate(zip(these, others, strict=True)) if this and not other]


def _rows(tensors: Sequence[Tensor], axis: int) -> Tensor:
    """Tensors of one shape as one of shape (tensors, rows, elements of a row); a view of a single one where it can be."""
    if axis:
        tensors = [tensor.movedim(axis, 0) for tensor in tensors]
    rows = tensors[0].shape[0]
    if len(tensors) == 1:
        return tensors[0].reshape(1, rows, -1)
    return torch.cat([*tensors]).reshape(len(tensors), rows, -1)


def _scale_invariant(g: Tensor, w: Tensor, delta: float, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of each of k tensors, given as (k, rows, elements): norms of w's rows, whether its rows are, whether it is as a whole."""
    along, own, weight = row_products(g, w), torch.linalg.vector_norm(g, dim=2), torch.linalg.vector_norm(w, dim=2)
    rows = (along.abs() / (own * weight).clamp(min=eps)).amax(1)
    whole = along.sum(1).abs() / (own.norm(dim=1) * weight.norm(dim=1)).clamp(min=eps)
    elements = w.shape[2]
    return weight, rows < delta / math.sqrt(elements), whole < delta / math.sqrt(elements * w.shape[1])


def _decay_(params: list[Tensor], rate: float, ratios: Sequence[float]) -> None:
    """`w <- (1 - rate * ratio) w`."""
    if rate:
        torch._foreach_mul_(params, [1 - rate * ratio for ratio in ratios])


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
        below = torch._foreach_sqrt(second)
        torch._foreach_div_(below, math.sqrt(1 - beta2**step))
        torch._foreach_add_(below, group["eps"])
        torch._foreach_reciprocal_(below)
        above = torch._foreach_lerp(first, grads, 1 - beta1) if group["nesterov"] else first
        torch._foreach_mul_(below, above)
        steps = list(below)
        _decay_(params, lr * group["weight_decay"], self.project(group, params, grads, steps, owners))
        torch._foreach_add_(params, steps, alpha=-lr / (1 - beta1**step))


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
        if group["nesterov"]:
            steps = list(torch._foreach_add(grads, buffer, alpha=momentum))
        else:
            steps = list(buffer)
        ratios = self.project(group, params, grads, steps, owners)
        _decay_(params, lr * group["weight_decay"] / (1 - momentum), ratios)
        torch._foreach_add_(params, steps, alpha=-lr)

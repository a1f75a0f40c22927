"""Fira: Adam in a low-rank subspace, and the rest of the gradient scaled as Adam scaled the part inside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trimtab.checks import non_negative, number, one_of, positive, whole
from trimtab.collectives import is_sharded
from trimtab.optimizers.foreach import ForeachOptimizer, Lists, adam_moments_, learning_rate, two_decays
from trimtab.optimizers.muon import HEADS
from trimtab.parameters import Rule, entries, rule_or
from trimtab.tensors.low_rank import leading_vectors

ORTHOGONAL = 0.5
"""Share of Q(R) taken off G up to which the norm of the rest is had from other norms without cancelling [ours]."""
RESIDUALS, PROJECTIONS = ("package", "true"), ("svd", "randomized")


class Fira(ForeachOptimizer):
    """Fira: the memory of a low-rank Adam, the update of full rank.

    A matrix G of gradients with both sides above `rank` is projected, `R = G Q^T` (`Q G` where it is wide), Q its `rank`
    leading singular vectors, found anew every `update_gap` steps. Adam's moments are those of R: `psi = m / (sqrt(v) + eps)`.
    What R misses is scaled as Adam scaled R, row by row (wide: column by column):
    `S = (G - alpha Q(R)) ||psi|| / (||R|| + 1e-8)`, its norm limited as in `trimtab.gradients.NormGrowthLimiter`. Then
    with `s = lr sqrt(1 - b2^t) / (1 - b1^t)`: `w <- w - s (alpha Q(psi) + S)`, `w <- (1 - lr weight_decay) w`. Every other
    tensor takes Adam's step in this form.

    Args:
        params: parameters, groups, or (name, parameter) pairs; `fira_groups` leaves heads and tables of embeddings to Adam.
        lr: learning rate, 0 or more. Default 1e-3; 0.01 in the paper's language models.
        betas: decay rates of the moments, each in [0, 1). Default (0.9, 0.999).
        eps: added to the denominators; above 0. Default 1e-6 (authors' code).
        weight_decay: decoupled, 0 or more. Default 0.
        rank: of the projection; 1 or more, None for Adam alone. Default 128 (paper, 60 M weights).
        update_gap: steps between new projections; 1 or more. Default 200 (paper).
        alpha: of the projected part; above 0. Default 0.25 (paper).
        max_growth: greatest growth of the norm of S in a step, as a factor; 1 or more. Default 1.01, paper and code.
        residual: "package" (default): S as above, which with alpha below 1 keeps a part of R too; "true": `G - Q(R)`, the
            paper's formula as we read it.
        projection: "svd" (default) or "randomized", by two power iterations, for large matrices [ours].
        foreach: None or True: tensors of Adam together; False: one at a time.
        maximize: step up the gradient.

    Raises:
        ValueError: a number out of range or a word unknown; (at the step) a sharded matrix that would be projected.
        FloatingPointError: (at the step) a gradient that is not finite when its projection is due.
        TypeError: (at the step) a complex parameter or a sparse gradient.

    Moments are not turned when the projection changes, as in the authors' package.

    Reference: Chen et al., Fira, arXiv 2410.01623.

    Example:
        >>> net = nn.Linear(64, 32)
        >>> optimizer = Fira(net.parameters(), lr=0.01, rank=4)
        >>> net(torch.ones(2, 64)).square().sum().backward()
        >>> optimizer.step()
        >>> tuple(optimizer.state[net.weight]["exp_avg"].shape), tuple(optimizer.state[net.weight]["projection"].shape)
        ((4, 64), (32, 4))
    """

    held = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        rank: int | None = 128,
        update_gap: int = 200,
        alpha: float = 0.25,
        max_growth: float = 1.01,
        residual: Literal["package", "true"] = "package",
        projection: Literal["svd", "randomized"] = "svd",
        *,
        foreach: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": learning_rate(lr),
            "betas": two_decays(betas),
            "eps": positive("eps", eps),
            "weight_decay": non_negative("weight_decay", weight_decay),
            "rank": None if rank is None else whole("rank", rank, least=1),
            "update_gap": whole("update_gap", update_gap, least=1),
            "alpha": positive("alpha", alpha),
            "max_growth": number("max_growth", max_growth, least=1),
            "residual": one_of("residual", residual, RESIDUALS),
            "projection": one_of("projection", projection, PROJECTIONS),
        }
        super().__init__(params, defaults, foreach=foreach, maximize=maximize)

    def new_state(self, group: dict[str, Any], owner: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Moments like the parameter, or like its projection; Q and the limited norm come with the first step."""
        if not _projected(owner, group):
            return super().new_state(group, owner, names)
        if is_sharded(owner):
            raise ValueError(
                f"Fira projects whole matrices and does not take sharded weights such as one of {tuple(owner.shape)}; use "
                "AdamW for them, or a group with rank=None"
            )
        rows, columns = owner.shape
        shape = (rows, group["rank"]) if rows >= columns else (group["rank"], columns)
        return {name: owner.new_zeros(shape) for name in names}

    def check(self, group: dict[str, Any], step: int, owners: Sequence[Tensor]) -> None:
        """FloatingPointError where a projection is due and its gradient is not finite."""
        for owner in owners:
            due = (step - 1) % group["update_gap"] == 0 or "projection" not in self.state[owner]
            gradient = owner.grad
            if due and gradient is not None and _projected(owner, group) and not bool(gradient.isfinite().all()):
                raise FloatingPointError(
                    f"Fira: a gradient of shape {tuple(gradient.shape)} holds inf or NaN at step {step}, where its projection "
                    'is found anew; skip such steps (GradScaler, attach(..., on_nonfinite="skip"))'
                )

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
        (beta1, beta2), lr = group["betas"], float(group["lr"])
        size = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        whole_ones = [at for at, owner in enumerate(owners) if not _projected(owner, group)]
        if whole_ones:
            first, second, own, g = (
                [of[at] for at in whole_ones] for of in (states["exp_avg"], states["exp_avg_sq"], params, grads)
            )
            adam_moments_(first, second, g, group["betas"])
            below = torch._foreach_sqrt(second)
            torch._foreach_add_(below, group["eps"])
            torch._foreach_addcdiv_(own, first, below, -size)
        for at in sorted(set(range(len(owners))) - set(whole_ones)):
            found = self._full_rank(group, step, grads[at], self.state[owners[at]])
            params[at].sub_(found.mul_(size).to(params[at].dtype))
        if group["weight_decay"]:
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])

    def _full_rank(self, group: dict[str, Any], step: int, gradient: Tensor, memory: dict[str, Tensor]) -> Tensor:
        """`alpha Q(psi) + S` of one matrix."""
        wide = torch.promote_types(gradient.dtype, torch.float32)
        g = gradient.to(wide)
        right = g.shape[0] >= g.shape[1]
        if (step - 1) % group["update_gap"] == 0 or "projection" not in memory:
            seed = step if group["projection"] == "randomized" else None
            memory["projection"] = leading_vectors(g, group["rank"], right=right, seed=seed).to(gradient.dtype)
        q = memory["projection"].to(wide)
        inside = g @ q.mT if right else q.mT @ g
        first, second = ([memory[name].to(wide)] for name in self.held)
        adam_moments_(first, second, [inside], group["betas"])
        for name, (moment,) in zip(self.held, (first, second), strict=True):
            memory[name].copy_(moment)
        psi = first[0] / (second[0].sqrt() + group["eps"])
        along = 1 if right else 0
        factor = psi.norm(dim=along, keepdim=True) / (inside.norm(dim=along, keepdim=True) + 1e-8)
        alpha = group["alpha"]
        share = alpha if group["residual"] == "package" else 1.0
        if share <= ORTHOGONAL and wide == gradient.dtype:
            return self._by_rows(group, memory, g, q, inside, psi, factor)
        both = torch.stack([inside, psi])
        back, scaled = (both @ q if right else q @ both).unbind()
        rest = (g - share * back).mul_(factor)
        norm = rest.norm()
        limiter = self._limiter(group, memory, norm)
        if limiter is not None:
            rest, norm = rest / limiter, norm / limiter
        memory["limited"] = norm
        return rest.add_(scaled, alpha=alpha)

    def _by_rows(
        self,
        group: dict[str, Any],
        memory: dict[str, Tensor],
        g: Tensor,
        q: Tensor,
        inside: Tensor,
        psi: Tensor,
        factor: Tensor,
    ) -> Tensor:
        """The same with one product less: `G f + Q(alpha psi - alpha R f)`, f a factor for each row (wide: column).

        The norm of S comes from the rows: `||g - alpha Q(r)||^2 = ||g||^2 - alpha (2 - alpha) ||r||^2`, Q's vectors being
        orthonormal.
        """
        right, alpha = g.shape[0] >= g.shape[1], group["alpha"]
        along = 1 if right else 0
        squares = g.norm(dim=along, keepdim=True).square_()
        squares.sub_(inside.norm(dim=along, keepdim=True).square_(), alpha=alpha * (2 - alpha)).clamp_(min=0)
        norm = squares.sqrt_().mul_(factor).norm()
        limiter = self._limiter(group, memory, norm)
        if limiter is not None:
            factor, norm = factor / limiter, norm / limiter
        memory["limited"] = norm
        within = (psi - inside * factor).mul_(alpha)
        return (g * factor).addmm_(within, q) if right else (g * factor).addmm_(q, within)

    @staticmethod
    def _limiter(group: dict[str, Any], memory: dict[str, Tensor], norm: Tensor) -> Tensor | None:
        """What S is divided by; None in the first step."""
        if (before := memory.get("limited")) is None:
            return None
        limiter: Tensor = (norm / (before.to(norm.dtype) + 1e-8)).clamp(min=group["max_growth"]) / group["max_growth"]
        return limiter

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; limited norms of half weights keep their own precision."""
        super().load_state_dict(state_dict)
        owners = [owner for group in self.param_groups for owner in group["params"]]
        for place, saved in state_dict["state"].items():
            if "limited" in saved:
                self.state[owners[place]]["limited"] = saved["limited"].to(owners[place].device)

    def state_bytes(self) -> tuple[int, int]:
        """Bytes of the states that there are, and of Adam's two moments for the same parameters."""
        own = [value for memory in self.state.values() for name, value in memory.items() if name != "step"]
        return (
            sum(tensor.numel() * tensor.element_size() for tensor in own),
            sum(2 * owner.numel() * owner.element_size() for owner in self.state),
        )

    def __repr__(self) -> str:
        """Groups and their settings, and the memory that the states take."""
        here, adam = self.state_bytes()
        return f"{super().__repr__()[:-1]}states: {here:,} bytes, Adam's: {adam:,}\n)"


def _projected(owner: Tensor, group: dict[str, Any]) -> bool:
    return owner.ndim == 2 and group["rank"] is not None and min(owner.shape) > group["rank"]


def fira_groups(model: nn.Module, rank: int = 128, *, rule: Rule | None = None) -> list[dict[str, Any]]:
    """Parameter groups for `Fira`: weights of products with both sides above `rank` apart, the rest with `rank=None`.

    Args:
        model: the network.
        rank: of the projection; 1 or more.
        rule: which matrices. Default: weights of products, without heads by name; tables of embeddings never are.

    Returns:
        Groups with `params` of (name, parameter) pairs and `rank`; empty ones left out.

    Raises:
        ValueError: `rank` is out of range, or no matrix is large enough.

    Example:
        >>> net = nn.ModuleDict({"table": nn.Embedding(100, 32), "up": nn.Linear(32, 64), "head": nn.Linear(64, 100)})
        >>> [(group["rank"], [name for name, _ in group["params"]]) for group in fira_groups(net, 8)]
        [(8, ['up.weight']), (None, ['table.weight', 'up.bias', 'head.weight', 'head.bias'])]
    """
    picked = rule_or(rule, Rule(exclude=HEADS))
    low: list[tuple[str, Tensor]] = []
    rest: list[tuple[str, Tensor]] = []
    settings = {"rank": whole("rank", rank, least=1)}
    for entry in entries(model):
        if not entry.parameter.requires_grad:
            continue
        table = isinstance(entry.owner, nn.Embedding | nn.EmbeddingBag)
        takes = not table and picked.reason_against(entry) is None and _projected(entry.parameter, settings)
        (low if takes else rest).append((entry.name, entry.parameter))
    if not low:
        raise ValueError(
            f"no weight of {type(model).__name__} is a matrix with both sides above rank={rank}; choose a smaller rank"
        )
    groups: list[dict[str, Any]] = [{"params": low, "rank": rank}, {"params": rest, "rank": None}]
    return [group for group in groups if group["params"]]

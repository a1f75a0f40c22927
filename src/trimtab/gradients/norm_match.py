"""NormMatch: the gradients that enter the branches of a network are brought to one size."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from trimtab.checks import below_one, number, one_of
from trimtab.collectives import sum_over_ranks

Target = Literal["mean", "min", "geometric"]
TARGETS = ("mean", "min", "geometric")


class NormMatch:
    """Gradients of equal size into each branch (modality) where branches meet, so that none is starved.

    For branch k with gradient `G_k` and `n_k = ||G_k||` (over all ranks): `e_k <- beta e_k + (1 - beta) n_k`, at first `n_k`;
    `G_k <- G_k * t / (e_k + 1e-12)`, the factor within `[1 / max_factor, max_factor]`, t the mean of all e. The calibration of
    modalities in FULLER has no readable formula; this one is ours [ours].

    Args:
        beta: of the running norm, in [0, 1). Default 0.9 [ours].
        target: t is the `"mean"`, `"min"` or `"geometric"` mean of the running norms. Default "mean", which keeps the
            total [ours].
        max_factor: greatest change; 1 or more. Default 10 [ours].

    Raises:
        ValueError: a number is out of range, an unknown target, fewer than two tensors, or another number than before.

    A branch whose gradient is zero or not finite is left as it is and counts for nothing in that step. Norms are remembered as
    they come, still times the scale of a `GradScaler`.

    Reference: Huang et al., FULLER, arXiv 2307.16617 (the aim).

    Example:
        >>> image, text = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> a, b = NormMatch(beta=0.0).match(image, text)
        >>> (a.sum() + 3 * b.sum()).backward()
        >>> image.grad, text.grad
        (tensor([2., 2.]), tensor([2., 2.]))
    """

    def __init__(self, beta: float = 0.9, target: Target = "mean", max_factor: float = 10.0) -> None:
        self.beta = below_one("beta", beta)
        self.target = one_of("target", target, TARGETS)
        self.max_factor = number("max_factor", max_factor, least=1)
        self.norms: Tensor | None = None
        """The running norms, NaN where a branch had no gradient yet."""

    def match(self, *branches: Tensor) -> tuple[Tensor, ...]:
        """The tensors themselves; on the way back their gradients are matched."""
        if len(branches) < 2 or (self.norms is not None and len(branches) != len(self.norms)):
            raise ValueError(
                f"match needs two branches or more, always as many, got {len(branches)}, before it "
                f"{'none' if self.norms is None else len(self.norms)}"
            )
        found: tuple[Tensor, ...] = _Matched.apply(self, *branches)  # type: ignore[no-untyped-call]
        return found

    def factors(self, norms: Tensor) -> Tensor:
        """What gradients of these norms are multiplied by; the norms are learned from."""
        before = torch.full_like(norms, torch.nan) if self.norms is None else self.norms.to(norms.device)
        present = norms.isfinite() & (norms > 0)
        moved = torch.where(before.isnan(), norms, self.beta * before + (1 - self.beta) * norms)
        self.norms = torch.where(present, moved, before)
        held = torch.where(present, self.norms, torch.nan)
        if self.target == "min":
            aim = held.nan_to_num(torch.inf).amin()
        else:
            aim = held.nanmean() if self.target == "mean" else held.log().nanmean().exp()
        factor = (aim / (held + 1e-12)).clamp(1 / self.max_factor, self.max_factor)
        return torch.where(present, factor, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The running norms."""
        return {"norms": None if self.norms is None else self.norms.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from saved running norms."""
        held = state["norms"]
        self.norms = None if held is None else torch.tensor(held, dtype=torch.float64)

    def __repr__(self) -> str:
        return f"NormMatch(beta={self.beta}, target={self.target!r}, max_factor={self.max_factor})"


class _Matched(torch.autograd.Function):
    """All gradients at once, since each factor needs every norm."""

    @staticmethod
    def forward(ctx: Any, owner: Any, *branches: Tensor) -> tuple[Tensor, ...]:
        ctx.owner = owner
        ctx.set_materialize_grads(False)
        return tuple(branch.view_as(branch) for branch in branches)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Any, ...]:
        owner = ctx.owner
        device = next((one.device for one in gradients if one is not None), None)
        if device is None:
            return (None, *gradients)
        squares = [torch.zeros((), dtype=torch.float64, device=device) if one is None else one.double().square().sum()
                   for one in gradients]  # fmt: skip
        factors = owner.factors(sum_over_ranks(torch.stack(squares)).sqrt())
        changed = [
            None if one is None else one * factor.to(one.dtype)
            for one, factor in zip(gradients, factors.unbind(), strict=True)
        ]
        return (None, *changed)

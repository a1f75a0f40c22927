"""DynamicPO: of many rejected answers only those near the boundary count, each with a strength of its own."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.checks import positive
from trimtab.losses.policy.tokens import Info


def borderline(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Which rejected answers lie at the boundary: those at least as likely as the chosen one, or, where there is none, the
    uppermost of the three clusters into which their log-probabilities fall; all, where there are fewer than three.

    Args:
        chosen: log-probabilities, shape (b,).
        rejected: log-probabilities, shape (b, k).

    Returns:
        Booleans of shape (b, k). The clusters are exact (least squares over all cuts of the sorted numbers) [ours; the
        authors' code starts KMeans at random].

    Example:
        >>> borderline(torch.tensor([0.0]), torch.tensor([[-1.0, -9.0, -1.2, -4.0]]))
        tensor([[ True, False,  True, False]])
    """
    above = rejected >= chosen[:, None]
    number = rejected.shape[1]
    if number < 3:
        return torch.ones_like(above)
    values = rejected.double().sort(1, descending=True).values
    middle = values - values.mean(1, keepdim=True)
    sums, squares = (functional.pad(one.cumsum(1), (1, 0)) for one in (middle, middle.square()))
    ends = torch.arange(number + 1, device=values.device)

    def errors(start: Tensor, end: Tensor) -> Tensor:
        """Sum of squared distances from the mean, of the sorted numbers start..end - 1."""
        return squares[:, end] - squares[:, start] - (sums[:, end] - sums[:, start]).square() / (end - start)

    first, second = torch.combinations(ends[1:-1]).unbind(1)
    error = errors(torch.zeros_like(first), first) + errors(first, second)
    best = first[(error + errors(second, torch.full_like(second, number))).argmin(1)]
    lowest = values.gather(1, best[:, None] - 1)
    return torch.where(above.any(1, keepdim=True), above, rejected.double() >= lowest)


def dynamic_dpo(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 1.0,
) -> tuple[Tensor, Info]:
    """DPO over the borderline rejected answers: `-log sigmoid(mean_i beta_i (l - l_i))`, mean over the batch.

    `l` and `l_i` are log-ratios of policy and reference of the chosen answer and of the borderline ones;
    `beta_i = beta (1 + tanh((d+ - d- - 2) / (|d+| + |d-|)) / 2)`, with `d+` the chosen less the borderline log-probability
    and `d-` that less the mean of the easy ones, both of the policy and without a gradient: weak where a wrong answer is
    likelier than the chosen one, strong where the boundary is clear.

    Args:
        chosen, ref_chosen: log-probabilities of whole answers under the policy and under the reference, shape (b,).
        rejected, ref_rejected: the same of k rejected answers, shape (b, k).
        beta: above 0. Default 1 (S-DPO's).

    Returns:
        The loss, and `borderline` (their share), `beta` (the mean of theirs), `margin` (mean of the argument).

    With fewer than three rejected answers, or none left that is easy, all are borderline and have `beta` itself; where
    `d+ = d- = 0` too [ours].

    Raises:
        ValueError: shapes do not fit, or beta is not above 0.

    Reference: Hu et al., arXiv 2605.00327.

    Example:
        >>> chosen, rejected = torch.tensor([-5.0]), torch.tensor([[-4.0, -4.5, -12.0]])
        >>> loss, info = dynamic_dpo(chosen, rejected, torch.zeros(1), torch.zeros(1, 3))
        >>> round(loss.item(), 4)
        0.9334
    """
    positive("beta", beta)
    if chosen.ndim != 1 or rejected.ndim != 2 or len(rejected) != len(chosen) or not rejected.numel():
        raise ValueError(
            f"chosen must have the shape (b,) and rejected (b, k), got {tuple(chosen.shape)} and {tuple(rejected.shape)}"
        )
    if ref_chosen.shape != chosen.shape or ref_rejected.shape != rejected.shape:
        raise ValueError(
            f"the reference's log-probabilities must have the shapes {tuple(chosen.shape)} and {tuple(rejected.shape)}, "
            f"got {tuple(ref_chosen.shape)} and {tuple(ref_rejected.shape)}"
        )
    wide = torch.promote_types(chosen.dtype, torch.float32)
    chosen, rejected = chosen.to(wide), rejected.to(wide)
    with torch.no_grad():
        near = borderline(chosen, rejected)
        easy = (~near).sum(1, keepdim=True)
        easy_mean = torch.where(near, 0, rejected).sum(1, keepdim=True) / easy
        up, down = chosen[:, None] - rejected, rejected - easy_mean
        size = up.abs() + down.abs()
        known = (easy > 0) & (size > 0)
        betas = beta * torch.where(known, 1 + 0.5 * torch.tanh((up - down - 2) / size), 1)
    gaps = (chosen - ref_chosen.detach().to(wide))[:, None] - (rejected - ref_rejected.detach().to(wide))
    margin = torch.where(near, betas * gaps, 0).sum(1) / near.sum(1)
    strength = torch.where(near, betas, 0).sum() / near.sum()
    return -functional.logsigmoid(margin).mean(), {
        "borderline": near.float().mean(), "beta": strength, "margin": margin.detach().mean()
    }  # fmt: skip

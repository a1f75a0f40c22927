"""DRPO: right answers are weighed by their length among themselves, and never punished for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.checks import non_negative, positive, whole
from trimtab.losses.policy.groups import as_rewards, numbered
from trimtab.losses.policy.tokens import Info, as_mask, log_ratio


def drpo(
    logp: Tensor,
    old_logp: Tensor,
    rewards: Tensor,
    mask: Tensor,
    groups: Any,
    *,
    tau: float = 10.0,
    lam: float = 0.1,
    beta: float = 1e3,
    delta: float = 1e-4,
    max_length: int | None = None,
) -> tuple[Tensor, Info]:
    """Decoupled reward policy optimisation: pull right rollouts up, short ones most, against the wrong ones of their group.

    With the score `s = mean of logp over a rollout's tokens`, of each group with right and wrong rollouts
    `-sum_right w (s - tau log mean_wrong exp(s / tau)) / sum_right w`, `w = exp((1 - length / max_length) / lam)`, summed over
    these and divided by the number of **all** groups (as the authors' code). And a trust region:
    `max(beta (KL - delta), 0) KL`, its first factor held, `KL = mean over tokens of (e^d - 1 - d)`, `d = logp - old_logp`.

    Args:
        logp, old_logp, mask: as of `ppo`, shape (b, t).
        rewards: shape (b,); above 0 is right.
        groups: a label for each rollout, those of one prompt alike.
        tau: temperature of the wrong ones. Default 10 (authors' code).
        lam: the smaller, the more length counts. Default 0.1 (authors' code).
        beta, delta: of the trust region. Default 1e3 and 1e-4 (authors' code).
        max_length: that lengths are held against. Default t, the width of the batch [ours].

    Returns:
        The loss, and `kl`, `mixed` (share of groups that teach), `clamped`. The value is the objective's own; that of the
        authors' code is a surrogate with the same gradient and a meaningless value. Without a mixed group (all rewards
        equal) only the trust region is left.

    Raises:
        ValueError: shapes differ, a row has no token, a reward is not finite, or a setting is out of range.
        TypeError: log-probabilities that are no floating-point numbers.

    Reference: Li et al., arXiv 2510.04474.

    Example:
        >>> logp = torch.tensor([[-0.5], [-0.8]], requires_grad=True)
        >>> loss, info = drpo(logp, logp.detach(), torch.tensor([1.0, 0.0]), torch.ones(2, 1), ["a", "a"])
        >>> loss.backward()
        >>> round(loss.item(), 4), logp.grad.tolist()
        (-0.3, [[-1.0], [1.0]])
    """
    positive("tau", tau)
    positive("lam", lam)
    non_negative("beta", beta)
    non_negative("delta", delta)
    kept = as_mask(mask, "sequence", logp=logp, old_logp=old_logp)
    longest = whole("max_length", kept.shape[1] if max_length is None else max_length, 1)
    rewards = as_rewards(rewards)
    if len(rewards) != len(kept):
        raise ValueError(f"rewards must have the shape ({len(kept)},), got {tuple(rewards.shape)}")
    index = numbered(groups, len(rewards), rewards.device)
    lengths = kept.sum(1)
    scores = torch.where(kept, logp.to(torch.promote_types(logp.dtype, torch.float32)), 0).sum(1) / lengths
    weights = (1 - lengths / longest) / lam
    right, count = rewards > 0, int(index.max()) + 1
    own = index == torch.arange(count, device=index.device)[:, None]  # (groups, rollouts)
    mixed = (own & right).any(1) & (own & ~right).any(1)
    objective = scores.new_zeros(())
    if bool(mixed.any()):
        own = own[mixed]
        shares = torch.where(own & right, weights, -torch.inf).softmax(1).to(scores.dtype)
        wrong = own & ~right
        against = torch.where(wrong, scores / tau, -torch.inf).logsumexp(1) - wrong.sum(1).log()
        objective = -((shares * scores).sum(1) - tau * against).sum() / count
    difference = log_ratio(logp, old_logp, kept)
    kl = (difference.expm1() - difference).sum() / lengths.sum()
    loss = objective + (beta * (kl.detach() - delta)).clamp(min=0) * kl
    return loss, {"kl": kl.detach(), "mixed": mixed.float().mean(), "clamped": (difference.abs() == 20).sum()}

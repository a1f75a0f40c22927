"""G2RL: rollouts that would move the policy in a direction of their own earn more."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from trimtab.checks import non_negative, positive
from trimtab.losses.policy.groups import as_rewards, numbered
from trimtab.losses.policy.tokens import as_mask


@torch.no_grad()
def gradient_features(logits: Tensor, tokens: Tensor, head: Tensor, mask: Tensor) -> Tensor:
    """Direction in which a rollout moves the last hidden layer: the mean over its tokens of `head^T (onehot(y_t) - p_t)`.

    Args:
        logits: shape (b, t, words), those that drew each token.
        tokens: shape (b, t).
        head: weight of the last Linear, shape (words, features).
        mask: shape (b, t).

    Returns:
        Shape (b, features), float32 at least.

    Raises:
        ValueError: shapes differ, or a row has no token.

    Example:
        >>> gradient_features(torch.zeros(1, 1, 2), torch.tensor([[1]]), torch.eye(2), torch.ones(1, 1))
        tensor([[-0.5000,  0.5000]])
    """
    kept = as_mask(mask, "sequence")
    if logits.shape[:-1] != kept.shape or tokens.shape != kept.shape or head.shape[0] != logits.shape[-1]:
        raise ValueError(
            f"logits must be (b, t, words), tokens and mask (b, t), head (words, features), got {tuple(logits.shape)}, "
            f"{tuple(tokens.shape)}, {tuple(mask.shape)}, {tuple(head.shape)}"
        )
    head = head.to(torch.promote_types(head.dtype, torch.float32))
    found = [
        (head[drawn[seen]] - rows[seen].to(head.dtype).softmax(-1) @ head).mean(0)
        for rows, drawn, seen in zip(logits, tokens, kept, strict=True)
    ]
    return torch.stack(found)


@torch.no_grad()
def g2rl(
    features: Tensor,
    rewards: Tensor,
    groups: Any = None,
    *,
    lam: float = 0.5,
    cap: float = 3.0,
) -> tuple[Tensor, Tensor]:
    """Rewards shaped by novelty: `r' = clip(r (1 + lam r nu), -cap, cap)`.

    `nu_i = max(0, 1 - sum_j w_ij cos^2(phi_i, phi_j))` over the others j of the group, `w_i` the softmax of their rewards: 1
    where no other rollout moves the policy along the same line, 0 where the good ones all do. A right rollout (reward above 0)
    of a direction of its own earns more; a wrong one loses less.

    Args:
        features: shape (b, features), as of `gradient_features`.
        rewards: shape (b,), such as 1 and -1.
        groups: a label for each rollout; None (default): all are one group.
        lam: 0 or more. Default 0.5 [ours].
        cap: above 0. Default 3 (paper).

    Returns:
        The new rewards and the novelty, both of shape (b,). The novelty is not normalised within the group, and the softmax
        leaves the rollout itself out [ours]; a rollout alone has novelty 1; a feature of zeros is along no other.

    Raises:
        ValueError: shapes do not fit, a reward is not finite, or a setting is out of range.

    Reference: Liang et al., arXiv 2512.15687.

    Example:
        >>> g2rl(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]]), torch.tensor([1.0, 1.0, 1.0]))
        (tensor([1.5000, 1.2500, 1.2500]), tensor([1.0000, 0.5000, 0.5000]))
    """
    non_negative("lam", lam)
    positive("cap", cap)
    rewards = as_rewards(rewards)
    if features.ndim != 2 or len(features) != len(rewards):
        raise ValueError(f"features must have the shape ({len(rewards)}, features), got {tuple(features.shape)}")
    index = numbered([0] * len(rewards) if groups is None else groups, len(rewards), rewards.device)
    unit = functional.normalize(features.to(rewards.dtype), dim=1, eps=torch.finfo(rewards.dtype).tiny)
    others = (index[:, None] == index) & ~torch.eye(len(rewards), dtype=torch.bool, device=rewards.device)
    weights = torch.where(others, rewards, -torch.inf).softmax(1).nan_to_num(0.0)  # NaN: a rollout without others
    novelty = (1 - (weights * (unit @ unit.T).square()).sum(1)).clamp(min=0)
    return (rewards * (1 + lam * rewards * novelty)).clamp(-cap, cap), novelty

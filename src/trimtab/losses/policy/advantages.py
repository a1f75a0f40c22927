"""Advantages of rollouts from their rewards: within a group (GRPO), and over the batch (DLER)."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import non_negative, one_of, whole
from trimtab.losses.policy.groups import as_rewards, centred, numbered

Scale = Literal["group", "none"]


def group_advantage(rewards: Tensor, groups: Any, *, scale: Scale = "group", eps: float = 1e-6) -> Tensor:
    """Advantage of GRPO: `A = (r - mean of the group) / (deviation of the group + eps)`.

    A group whose rewards are all equal, and a group of one, has the advantage 0 exactly: nothing is learned from it.

    Args:
        rewards: shape (b,).
        groups: a label for each rollout, those of one prompt alike: a tensor, an array or a sequence.
        scale: "group" (default; sample deviation, n - 1, as TRL and verl) or "none" (Dr. GRPO).
        eps: 0 or more. Default 1e-6 (verl; TRL has 1e-4).

    Raises:
        ValueError: shapes do not fit, or a reward is not finite.

    Reference: Shao et al., arXiv 2402.03300; without the deviation 2503.20783.

    Example:
        >>> group_advantage(torch.tensor([1.0, 0.0, 5.0, 5.0]), ["a", "a", "b", "b"], eps=0.0)
        tensor([ 0.7071, -0.7071,  0.0000,  0.0000])
    """
    one_of("scale", scale, get_args(Scale))
    non_negative("eps", eps)
    rewards = as_rewards(rewards)
    index = numbered(groups, len(rewards), rewards.device)
    found, sizes, squares = centred(rewards, index)
    if scale == "none":
        return found
    deviation = (squares / (sizes - 1).clamp(min=1)).sqrt()[index]
    return torch.where(deviation > 0, found / (deviation + eps), 0)


def batch_advantage(
    rewards: Tensor,
    groups: Any,
    *,
    lengths: Tensor | None = None,
    max_length: int = 4000,
    eps: float = 1e-8,
) -> Tensor:
    """Advantage of DLER: the group's mean off, divided by the deviation of the whole batch; too long counts as wrong.

    `A = (r - mean of the group) / (std over the batch of (r - mean of the group) + eps)`; a rollout longer than `max_length`
    has the reward 0. With a hard limit groups turn nearly all wrong or nearly all right, where GRPO's own deviation is tiny
    and its noise is blown up; the batch's is not. Used with `ppo(low=0.2, high=0.28)`.

    Args:
        rewards: shape (b,), of the whole batch (over all ranks).
        groups: as of `group_advantage`.
        lengths: tokens of each rollout, shape (b,); None (default) where rewards know the limit already.
        max_length: 1 or more. Default 4000 (paper).
        eps: 0 or more. Default 1e-8 [ours].

    The deviation is that of the population [ours]; all rewards equal in each group: 0 exactly.

    Raises:
        ValueError: shapes do not fit, or a reward is not finite.

    Reference: Liu et al., DLER, arXiv 2510.15110 (formulas only; the authors' code is not free).

    Example:
        >>> batch_advantage(torch.tensor([1.0, 0.0, 1.0, 1.0]), [0, 0, 1, 1], lengths=torch.tensor([9, 9, 9, 9999]))
        tensor([ 1., -1.,  1., -1.])
    """
    whole("max_length", max_length, 1)
    non_negative("eps", eps)
    rewards = as_rewards(rewards)
    if lengths is not None:
        if lengths.shape != rewards.shape:
            raise ValueError(
                f"lengths must have the shape of rewards {tuple(rewards.shape)}, got {tuple(lengths.shape)}"
            )
        rewards = torch.where(lengths > max_length, 0, rewards)
    found, _, squares = centred(rewards, numbered(groups, len(rewards), rewards.device))
    deviation = (squares.sum() / len(rewards)).sqrt()
    return torch.where(deviation > 0, found / (deviation + eps), 0)

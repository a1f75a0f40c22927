"""Groups of rollouts that answer one prompt."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor


def as_rewards(rewards: Tensor) -> Tensor:
    """Rewards of shape (b,), in float32 at least.

    Raises:
        ValueError: another shape, or a reward that is not finite.
    """
    if rewards.ndim != 1 or not len(rewards):
        raise ValueError(f"rewards must have the shape (rollouts,) and not be empty, got {tuple(rewards.shape)}")
    found = rewards.detach().to(torch.promote_types(rewards.dtype, torch.float32))
    if not bool((finite := found.isfinite()).all()):
        row = int((~finite).nonzero()[0])
        raise ValueError(f"reward {row} is {float(found[row])}: rewards must be finite")
    return found


def numbered(groups: Iterable[Hashable] | Tensor | Any, rollouts: int, device: torch.device) -> Tensor:
    """The group of each rollout as a number from 0 on, in order of first sight.

    Args:
        groups: a label for each rollout: a tensor, an array or a sequence of anything hashable.
        rollouts: how many there must be.
        device: of the answer.

    Raises:
        ValueError: another number of labels.

    Example:
        >>> numbered(["b", "a", "b"], 3, torch.device("cpu"))
        tensor([0, 1, 0])
    """
    labels = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(labels) != rollouts:
        raise ValueError(f"groups must name a group for each of the {rollouts} rollouts, got {len(labels)} labels")
    known: dict[Hashable, int] = {}
    return torch.tensor([known.setdefault(label, len(known)) for label in labels], device=device)


def totals(values: Tensor, index: Tensor, groups: int) -> Tensor:
    """Sum of the values of each group."""
    return values.new_zeros(groups).index_add(0, index, values)


def centred(rewards: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards less their group's mean, exactly 0 where all of a group are equal; the groups' sizes and sums of squares."""
    groups = int(index.max()) + 1
    sizes = totals(torch.ones_like(rewards), index, groups)
    found = rewards - (totals(rewards, index, groups) / sizes)[index]
    ends = [rewards.new_zeros(groups).scatter_reduce(0, index, rewards, how, include_self=False)
            for how in ("amin", "amax")]  # fmt: skip
    found = torch.where((ends[0] == ends[1])[index], 0, found)  # a mean of equal numbers is rounded
    return found, sizes, totals(found.square(), index, groups)

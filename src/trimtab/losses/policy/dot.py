"""DOT: in a group whose answers are all right, the few that are far too long are cut."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.checks import positive, whole
from trimtab.losses.policy.groups import numbered, totals


def dot_lengths(lengths: Tensor, correct: Tensor, groups: Any, *, alpha: float = 3.0, margin: int = 32) -> Tensor:
    """Length at which each rollout is cut: `T = int(mean + alpha std)` of its group where all of that are right.

    A rollout is cut where it is at least `margin` tokens longer than T; all others, and groups with a wrong answer, keep
    their lengths. What is cut is judged anew: it has lost its answer, as a rule, and its reward with it.

    Args:
        lengths: tokens of each rollout, shape (b,), whole numbers.
        correct: shape (b,), booleans or 0 and 1.
        groups: a label for each rollout, those of one prompt alike. The paper has 32 of each.
        alpha: above 0. Default 3 (paper); the deviation is that of the sample (n - 1).
        margin: 0 or more. Default 32 (authors' code).

    Returns:
        Shape (b,), whole numbers; `cut = answer < lengths`.

    Raises:
        ValueError: shapes do not fit; or no group is large enough: of n numbers none lies more than (n - 1) / sqrt(n)
            deviations above their mean, so that with alpha = 3 ten or fewer are never cut.
        TypeError: lengths are no whole numbers.

    The paper pairs it with KL-Cov and oversampling of prompts, which are not here.

    Reference: Wu et al., Anti-Length Shift, arXiv 2601.03969.

    Example:
        >>> lengths = torch.tensor([100] * 31 + [4000])
        >>> dot_lengths(lengths, torch.ones(32), ["prompt"] * 32)[-2:]
        tensor([ 100, 2290])
    """
    positive("alpha", alpha)
    whole("margin", margin, 0)
    if lengths.is_floating_point() or lengths.dtype is torch.bool:
        raise TypeError(f"lengths must be whole numbers, got {lengths.dtype}")
    if lengths.ndim != 1 or correct.shape != lengths.shape or not len(lengths):
        raise ValueError(
            f"lengths and correct must have one shape (rollouts,), got {tuple(lengths.shape)} and {tuple(correct.shape)}"
        )
    index = numbered(groups, len(lengths), lengths.device)
    count = int(index.max()) + 1
    values = lengths.double()
    sizes = totals(torch.ones_like(values), index, count)
    if (largest := int(sizes.max())) - 1 <= alpha * largest**0.5:
        raise ValueError(
            f"the largest group has {largest} rollouts, of which none can lie more than {(largest - 1) / largest**0.5:.2f} "
            f"deviations above their mean: alpha={alpha:g} would never cut; draw more or lower alpha"
        )
    mean = totals(values, index, count) / sizes
    deviation = (totals((values - mean[index]).square(), index, count) / (sizes - 1).clamp(min=1)).sqrt()
    limit = (mean + alpha * deviation).floor().to(lengths.dtype)[index]
    right = totals((correct != 0).double(), index, count) == sizes
    return torch.where(right[index] & (lengths - limit >= margin), limit, lengths)

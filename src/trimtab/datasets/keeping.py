"""keep: the part of a training set that scores say is worth it."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trimtab.checks import number, one_of

Which = Literal["hard", "easy", "middle"]
WHICH = ("hard", "easy", "middle")


def keep(scores: Tensor, fraction: float, which: Which = "hard", by_class: Tensor | None = None) -> Tensor:
    """Indices of the examples that stay, rising; `split.at(indices)` is the smaller training set.

    Args:
        scores: (examples,), the higher the harder, as `ExampleScores.values` gives them; infinity is hardest.
        fraction: of the examples that stay, in (0, 1]; rounded to whole examples, at least one of each class.
        which: the "hard" ones (default), the "easy" ones, which is better for small budgets (arXiv 2311.16298), or the
            "middle".
        by_class: classes (examples,): the fraction of each class stays, so that no class is lost. Default: of all together.

    Raises:
        ValueError: a score is NaN (an example that was never seen), the fraction is out of range, shapes do not fit.

    Of examples of one score those that stand first are taken as easier [ours].

    Example:
        >>> keep(torch.tensor([0.1, 0.9, 0.5, 0.7]), 0.5)
        tensor([1, 3])
    """
    number("fraction", fraction, above=0, most=1)
    one_of("which", which, WHICH)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(f"scores must be one number an example, got the shape {tuple(scores.shape)}")
    if bool(scores.isnan().any()):
        at = scores.isnan().nonzero().flatten()
        raise ValueError(
            f"{len(at)} examples have no score, the first is {int(at[0])}; see each at least once before choosing"
        )
    if by_class is None:
        return _chosen(scores, fraction, which).sort().values
    if by_class.shape != scores.shape:
        raise ValueError(f"by_class must be one class an example {tuple(scores.shape)}, got {tuple(by_class.shape)}")
    parts = []
    for kind in torch.unique(by_class):
        own = (by_class == kind).nonzero().flatten()
        parts.append(own[_chosen(scores[own], fraction, which)])
    return torch.cat(parts).sort().values


def _chosen(scores: Tensor, fraction: float, which: Which) -> Tensor:
    order = scores.argsort(stable=True)
    count = max(1, round(fraction * len(scores)))
    start = {"easy": 0, "hard": len(scores) - count, "middle": (len(scores) - count) // 2}[which]
    return order[start : start + count]

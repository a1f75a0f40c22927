"""EqualNorm: every loss's gradient gets the mean norm."""

from __future__ import annotations

import torch
from torch import Tensor

from trimtab.multitask.base import Weighted, norms


class EqualNorm(Weighted):
    """The gradients brought to one norm, their mean, and added: `g = sum_k (mean_j ||g_j|| / ||g_k||) g_k`.

    So that no loss leads because its numbers are larger. A gradient of zero takes no part, in the mean neither.

    The formula is ours: OFVL-MS (arXiv 2308.11928) asks that the gradients' magnitudes be made alike and prints no formula
    that we found; it is also the branch of SAM-GS for gradients of unlike size.

    Reference: Yin et al., SAM-GS, arXiv 2506.06130 (that branch).

    Example:
        >>> EqualNorm()(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
        tensor([2., 2.])
    """

    def weights(self, products: Tensor) -> Tensor:
        """`mean_j ||g_j|| / ||g_k||`."""
        return equalising(norms(products))


def equalising(sizes: Tensor) -> Tensor:
    """The factors that bring vectors of these norms to their mean; 0 for those of zero, which do not count.

    Example:
        >>> equalising(torch.tensor([3.0, 1.0, 0.0]))
        tensor([0.6667, 2.0000, 0.0000])
    """
    there = sizes > 0
    aim = sizes.sum() / there.sum().clamp(min=1)
    return torch.where(there, aim / torch.where(there, sizes, 1), 0)

"""PCGrad: of each gradient the part that works against another is taken off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trimtab.checks import whole
from trimtab.multitask.base import Weighted


class PCGrad(Weighted):
    """Projecting conflicting gradients: each loss gives up what works against the others, then all are added.

    For every loss i, with the others j in random order: `v_i <- v_i - min(0, <v_i, g_j>) / ||g_j||^2 g_j`, from `v_i = g_i`;
    the result is `sum_i v_i`. Without conflict it is the plain sum.

    Args:
        seed: of the orders. Default 0. An order matters from three losses on.

    Raises:
        TypeError: the seed is no whole number.

    A gradient of zero is not projected on. All products are those of the first gradients, so the parameters are read twice
    however many losses there are.

    Reference: Yu et al., arXiv 2001.06782 (the sum, as its code and torchjd have it).

    Example:
        >>> PCGrad()(torch.tensor([[1.0, 0.0], [-1.0, 1.0]]))  # (1/2, 1/2) and (0, 1)
        tensor([0.5000, 1.5000])
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = whole("seed", seed)
        self._draws = torch.Generator().manual_seed(self.seed)

    def weights(self, products: Tensor) -> Tensor:
        """The coefficients of all projected gradients, added up."""
        count = len(products)
        found = torch.zeros(count, dtype=torch.float64)
        for own in range(count):
            share = torch.zeros(count, dtype=torch.float64)
            share[own] = 1
            for other in torch.randperm(count, generator=self._draws).tolist():
                against = float(products[other] @ share)
                if other != own and against < 0 < float(products[other, other]):
                    share[other] -= against / products[other, other]
            found += share
        return found

    def settings(self) -> dict[str, Any]:
        """The seed."""
        return {"seed": self.seed}

    def memory(self) -> dict[str, Any]:
        """Where the draws stand."""
        return {"draws": self._draws.get_state()}

    def remember(self, memory: dict[str, Any]) -> None:
        """Go on drawing from there."""
        self._draws.set_state(memory["draws"].cpu())

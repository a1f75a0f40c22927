"""EffectiveRank: how many directions a weight matrix uses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.observe.meters.meter import EachTensor
from trimtab.parameters import Entry


def effective_rank(matrix: Tensor) -> Tensor:
    """`exp(-sum_i p_i ln p_i)`, `p_i` the singular values by their sum: n for n equal ones, 1 for a single one; NaN for zeros.

    Args:
        matrix: shape (outputs, ...), the rest of the axes as one; computed in float32 at least.

    Returns:
        Shape ().

    Reference: Roy and Vetterli, The effective rank, EUSIPCO 2007.

    Example:
        >>> effective_rank(torch.eye(4))
        tensor(4.)
    """
    wide = matrix.detach().to(torch.promote_types(matrix.dtype, torch.float32))
    values = torch.linalg.svdvals(wide.flatten(1))
    shares = values / values.sum()
    found: Tensor = (-torch.special.xlogy(shares, shares).sum()).exp()
    return found


class EffectiveRank(EachTensor):
    """The effective rank of every weight matrix, at the steps looked at.

    Signals: `effective_rank`, the mean over the tensors of their rank by the greatest they could have, in (0, 1];
    `layers()` has each rank.

    Args:
        every: as of `Meter`. A step looked at takes the singular values of all matrices: seconds for large ones.
        rule: which tensors count. Default `Rule(role="any")`: trainable, at least two dimensions [ours].

    Raises:
        ValueError: (at a step) a weight is sharded; its singular values are not its parts'.

    Reference: Roy and Vetterli, EUSIPCO 2007.

    Example:
        >>> import trimtab
        >>> net = torch.nn.Linear(3, 3, bias=False)
        >>> net.weight.data, net.weight.grad = torch.eye(3), torch.zeros(3, 3)
        >>> optimizer, meter = torch.optim.SGD(net.parameters(), lr=0.1), EffectiveRank()
        >>> handle = trimtab.attach(optimizer, meter, model=net)
        >>> optimizer.step()
        >>> {name: round(rank, 3) for name, rank in meter.layers().items()}
        {'weight': 3.0}
    """

    def measure(self, parameters: Sequence[Entry]) -> dict[str, Tensor]:
        """The ranks."""
        picked = self._picked(parameters)
        if not picked:
            return {}
        for one in picked:
            if hasattr(one.parameter, "to_local"):
                raise ValueError(f"{self!r} does not take sharded weights, {one.name} is one")
        ranks = [effective_rank(one.parameter) for one in picked]
        device = ranks[0].device
        self._names = [one.name for one in picked]
        self._each = torch.stack([rank.to(device, torch.float64) for rank in ranks])
        most = [min(len(one.parameter), one.parameter[0].numel()) for one in picked]
        return {"effective_rank": (self._each / torch.tensor(most, device=device)).mean()}

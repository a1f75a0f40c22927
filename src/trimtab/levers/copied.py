"""Optimizers whose copies are whole."""

from __future__ import annotations

from typing import Any

import torch

_ANEW = ("_optimizer_", "_zero_grad_profile", "_warned_")
"""What torch gives a copy itself: hooks, which a copy does not take over, and names for the profiler."""


class CopiedWhole(torch.optim.Optimizer):
    """An optimizer whose copies and pickles hold all that it holds; torch's hold groups, state and defaults alone.

    Levers do not go along: attach others to the copy. What a copy should not have, `uncopied` names.

    Example:
        >>> import copy
        >>> from trimtab.optimizers import SGDP
        >>> net = torch.nn.Linear(2, 2)
        >>> twin, optimizer = copy.deepcopy((net, SGDP(net.parameters(), lr=0.1, model=net)))
        >>> twin(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> torch.equal(twin.weight, net.weight)
        False
    """

    uncopied: tuple[str, ...] = ()
    """Attributes that are made anew when they are used."""

    def __getstate__(self) -> dict[str, Any]:
        kept = self.__dict__.items()
        return {key: value for key, value in kept if not key.startswith(_ANEW) and key not in ("step", *self.uncopied)}

"""Where an optimizer keeps its momentum."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.parameters import Entry

FIRST_MOMENTS = ("momentum_buffer", "exp_avg")
"""Names of first moments in the state of torch's optimizers: SGD and RMSprop; Adam and its relatives."""

Buffers = dict[str, list[tuple[Entry, Tensor]]]


def momentum_buffers(optimizer: torch.optim.Optimizer, chosen: Sequence[Entry], keys: Sequence[str]) -> Buffers:
    """The buffers of these names by name, each with its entry.

    Raises:
        ValueError: an entry has a gradient, so the optimizer has stepped, and there is no such buffer.
    """
    found: Buffers = {key: [] for key in keys}
    others: set[str] = set()
    for entry in chosen:
        for name, value in optimizer.state.get(entry.parameter, {}).items():
            if isinstance(value, Tensor) and value.ndim:
                others.add(name)
                if name in found:
                    found[name].append((entry, value))
    if not any(found.values()) and any(entry.parameter.grad is not None for entry in chosen):
        raise ValueError(
            f"momentum is to be rounded, and the state of {type(optimizer).__name__} has none of {tuple(keys)}, only "
            f"{sorted(others) or 'no buffers'}; see momentum_keys"
        )
    return found

"""The plain optimizers that recipes build on: torch's, with our defaults."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from trimtab.checks import below_one, non_negative, positive


def sgd(
    params: Iterable[nn.Parameter],
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    *,
    nesterov: bool = False,
) -> torch.optim.SGD:
    """`torch.optim.SGD` with the defaults of residual networks on CIFAR [ours].

    Args:
        params: what is trained.
        lr: learning rate, above 0.
        momentum: in [0, 1).
        weight_decay: L2 decay, 0 or more.
        nesterov: Nesterov momentum.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> sgd(torch.nn.Linear(2, 1).parameters()).defaults["momentum"]
        0.9
    """
    return torch.optim.SGD(
        params,
        lr=positive("lr", lr),
        momentum=below_one("momentum", momentum),
        weight_decay=non_negative("weight_decay", weight_decay),
        nesterov=nesterov,
    )


def adamw(
    params: Iterable[nn.Parameter],
    lr: float = 1e-3,
    weight_decay: float = 0.05,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """`torch.optim.AdamW` (arXiv 1711.05101) with a decay of 0.05 [ours].

    Args:
        params: what is trained.
        lr: learning rate, above 0.
        weight_decay: decoupled decay, 0 or more.
        betas: decay rates of the moments, each in [0, 1).
        eps: added to the denominator, above 0.

    Raises:
        ValueError: a number out of range.

    Example:
        >>> adamw(torch.nn.Linear(2, 1).parameters()).defaults["weight_decay"]
        0.05
    """
    first, second = (below_one(f"betas[{place}]", value) for place, value in enumerate(betas))
    return torch.optim.AdamW(
        params,
        lr=positive("lr", lr),
        betas=(first, second),
        eps=positive("eps", eps),
        weight_decay=non_negative("weight_decay", weight_decay),
    )

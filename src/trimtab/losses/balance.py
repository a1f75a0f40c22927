"""Balance: every term of an objective brought to the value of one of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.checks import whole


def balance(losses: Sequence[Tensor], reference: int = 0) -> list[Tensor]:
    """Guided loss scaling: `loss_i * (loss_ref / loss_i)`, the factor without gradient.

    Every term then has the reference's value, and its gradient is that of `loss_ref * log loss_i`: where one term is far
    larger than another (a thousand background boxes against the position of one object) neither drowns.

    Args:
        losses: single numbers, 0 or more.
        reference: which of them keeps its size. Default 0.

    A term of 0 stays as it is, and a reference of 0 leaves all as they are [ours]. A NaN stays one.

    Raises:
        ValueError: a loss is negative or no single number, or there is no such reference.

    Reference: Chen et al., Sampling-Free, arXiv 1909.04868 (guided loss scaling).

    Example:
        >>> balance([torch.tensor(2.0), torch.tensor(500.0)])
        [tensor(2.), tensor(2.)]
    """
    if not losses:
        raise ValueError("balance needs at least one loss, got none")
    whole("reference", reference, 0, len(losses) - 1)
    for at, loss in enumerate(losses):
        if loss.numel() != 1:
            raise ValueError(f"loss {at} must be a single number, got the shape {tuple(loss.shape)}")
    values = torch.stack([loss.detach().reshape(()) for loss in losses])
    if bool((values < 0).any()):
        at = int((values < 0).nonzero()[0])
        raise ValueError(f"losses must be 0 or more to be balanced by their values, loss {at} is {values[at].item():g}")
    aim = values[reference]
    factors = torch.where((values > 0) & (aim > 0), aim / values, 1)
    return [loss * factor for loss, factor in zip(losses, factors.unbind(), strict=True)]

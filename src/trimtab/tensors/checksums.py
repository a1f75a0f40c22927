"""A whole number for each tensor that changes when a single bit of it does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Whole numbers as wide as an element."""


@torch.no_grad()
def checksums(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of the elements' bits, read as whole numbers, modulo 2^64; int64, shape (tensors,), on the first's device.

    Args:
        tensors: dense, at least one, of any dtype.

    Example:
        >>> one, other = checksums([torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0 + 2**-22])]).tolist()
        >>> other - one
        1
    """
    found = []
    for tensor in tensors:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        found.append(real.detach().view(BITS[real.element_size()]).sum(dtype=torch.int64))
    return torch.stack([one.to(found[0].device) for one in found])

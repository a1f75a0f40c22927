"""Memory for many tensors at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.collectives import is_sharded


def in_one_stretch(wanted: Sequence[tuple[Tensor, torch.dtype]]) -> list[Tensor]:
    """Empty tensors like the parameters, of the dtypes given.

    On a processor those of a dtype lie in one stretch: memory that is asked for and given back in small pieces in every step
    goes back to the operating system each time, and a page that comes anew costs as much as a thousand numbers.

    Example:
        >>> one, other = in_one_stretch([(torch.ones(2, 3), torch.float32), (torch.ones(4), torch.float32)])
        >>> one.shape, one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
        (torch.Size([2, 3]), True)
    """
    found: list[Tensor | None] = [None] * len(wanted)
    for dtype in {dtype for _, dtype in wanted}:
        plain = [
            place
            for place, (parameter, own) in enumerate(wanted)
            if own == dtype
            and parameter.device.type == "cpu"
            and parameter.is_contiguous()
            and not is_sharded(parameter)
        ]
        sizes = [-(-wanted[place][0].numel() // 16) * 16 for place in plain]  # each begins at a cache line
        for place, part in zip(plain, torch.split(torch.empty(sum(sizes), dtype=dtype), sizes), strict=True):
            parameter = wanted[place][0]
            found[place] = part[: parameter.numel()].view(parameter.shape)
    return [
        torch.empty_like(parameter, dtype=dtype) if own is None else own
        for own, (parameter, dtype) in zip(found, wanted, strict=True)
    ]

"""Independent random streams named by what they are for."""

from __future__ import annotations

import hashlib

import torch


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator that is a pure function of `parts`: other parts, an unrelated stream.

    Example:
        >>> first, again = (torch.rand(2, generator=generator(0, "order", 3)) for _ in range(2))
        >>> torch.equal(first, again)
        True
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

"""Random numbers that are a function of what they are for, so that a resumed run needs no generator's state."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from trimtab.collectives import is_sharded


def seed_for(*key: object) -> int:
    """A seed of 63 bits from numbers and names.

    Example:
        >>> seed_for(0, 1, "weights") != seed_for(0, 2, "weights")
        True
    """
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "big") >> 1


def shard_of(tensor: Tensor) -> tuple[int, ...]:
    """Which shard of a DTensor this rank holds, the same on ranks that hold copies; empty for any other tensor."""
    if not is_sharded(tensor):
        return ()
    coordinate = tensor.device_mesh.get_coordinate() or ()  # type: ignore[attr-defined]
    placements = tensor.placements  # type: ignore[attr-defined]
    return tuple(at for at, placement in zip(coordinate, placements, strict=True) if not placement.is_replicate())


class Generators:
    """One `torch.Generator` for each device, begun anew for each key."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._by_device: dict[torch.device, torch.Generator] = {}

    def begin(self, device: torch.device, *key: object) -> torch.Generator:
        """A generator at the start of the numbers that belong to (seed, key)."""
        if device not in self._by_device:
            self._by_device[device] = torch.Generator(device)
        return self._by_device[device].manual_seed(seed_for(self.seed, *key))

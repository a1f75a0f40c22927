"""Room for pixels: in memory, or, where they are many, in a file from which the system reads what a batch needs."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

CHUNK = 1024
"""Images copied at a time."""


def most_in_memory() -> int:
    """Bytes of one split that are kept in memory: a quarter of the machine's [ours]."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 4
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return 2**32


def room(shape: Sequence[int], *, on_disk: bool) -> Tensor:
    """An uint8 tensor of that shape, its values not set; with `on_disk` in a file of the temporary folder (TMPDIR).

    The file has no name and goes with the tensor.

    Raises:
        OSError: the disk is full.
    """
    if not on_disk:
        return torch.empty(tuple(shape), dtype=torch.uint8)
    handle, name = tempfile.mkstemp(prefix="trimtab-")
    size = math.prod(shape)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(
                handle, 0, max(size, 1)
            )  # now, not in the midst of writing, where it would kill the process
        else:
            os.ftruncate(handle, max(size, 1))
        return torch.from_file(name, shared=True, size=size, dtype=torch.uint8).reshape(tuple(shape))
    except OSError as error:
        needed = f"{size / 1e9:.3g} GB for pictures in {Path(name).parent}; TMPDIR names another folder"
        raise OSError(error.errno, f"no room for {needed}: {error.strerror or error}") from error
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):  # where an open file cannot be removed it stays until the machine cleans up
            Path(name).unlink()


def is_on_disk(images: Tensor) -> bool:
    """Whether `room` put these in a file."""
    return getattr(images.untyped_storage(), "filename", None) is not None


def taken(images: Tensor, index: Tensor) -> Tensor:
    """`images[index]`, on disk where `images` are."""
    if not is_on_disk(images):
        return images[index]
    found = room((len(index), *images.shape[1:]), on_disk=True)
    for start in range(0, len(index), CHUNK):
        found[start : start + CHUNK] = images[index[start : start + CHUNK]]
    return found

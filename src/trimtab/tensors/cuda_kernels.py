"""Kernels of our own for NVIDIA GPUs, compiled by torch's NVRTC when they are first used.

They fuse what would be many passes over a large tensor; where they cannot be had (another accelerator, an older torch, a driver
without NVRTC) everything runs by torch's own operations, with the same result.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

THREADS = 256
BLOCKS = 132 * 16
"""Blocks of a launch at most; each goes on where the last thread ended [ours]."""


class Kernel:
    """One `extern "C"` function; numbers become int (32 bits) or double, tensors their addresses."""

    def __init__(self, function: Any, device: torch.device) -> None:
        self._function, self._device = function, device

    def __call__(self, threads: int, arguments: Sequence[Tensor | int | float], *, shared: int = 0) -> None:
        """Launch on the current stream with at least one thread for each of `threads`, as far as `BLOCKS` go."""
        blocks = min(max(-(-threads // THREADS), 1), BLOCKS)
        with torch.cuda.device(self._device):
            self._function(grid=(blocks, 1, 1), block=(THREADS, 1, 1), args=list(arguments), shared_mem=shared)


@lru_cache(maxsize=64)
def _compiled(source: str, name: str, index: int) -> Kernel | None:
    compile_kernel = getattr(torch.cuda, "_compile_kernel", None)
    if compile_kernel is None or torch.version.hip:
        return None
    device = torch.device("cuda", index)
    try:
        with torch.cuda.device(device):
            return Kernel(compile_kernel(source, name), device)
    except Exception as error:  # no NVRTC, a driver of another age: slower, not wrong
        warnings.warn(
            f"the kernel {name} cannot be compiled here ({error}); torch's operations do its work", stacklevel=2
        )
        return None


def kernel(source: str, name: str, device: torch.device) -> Kernel | None:
    """The function `name` of CUDA source for a device; None where it cannot be had."""
    if device.type != "cuda":
        return None
    return _compiled(source, name, torch.cuda.current_device() if device.index is None else device.index)

"""Run a function on two or more CPU processes (gloo), for tests that hold several ranks against one."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Ranks are forked from a process that has these imported and does nothing else, begun at the first call: a rank that
# imports torch for itself takes seconds, a forked one a tenth of one.
PRELOADED = [
    "__main__",
    "pytest",
    "torch.distributed.fsdp",
    "trimtab.levers",
    "trimtab.observe",
    "trimtab.precision",
    "tests.distributed",
]


def _worker(rank: int, world: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    try:
        result = function(rank, world, *arguments)
    except BaseException:
        dist.destroy_process_group()
        raise
    torch.save(result, Path(folder) / f"result{rank}.pt")
    # Gloo's own threads abort now and then when a group is taken down while a peer is leaving: a rank that has its result
    # meets the others once more, then leaves without taking anything down.
    with contextlib.suppress(RuntimeError):
        dist.barrier()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def on_ranks(world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`function(rank, world, *arguments)` on each of `world` ranks; returns all results (tensors, numbers, lists, dicts)."""
    multiprocessing.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_worker, args=(world, folder, function, arguments), nprocs=world, start_method="forkserver")
        return [torch.load(Path(folder) / f"result{rank}.pt", weights_only=True) for rank in range(world)]


def on_two_ranks(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`on_ranks` with ranks 0 and 1."""
    return on_ranks(2, function, *arguments)

"""How the GPU's parts measure: blocks of calls in turns A B B A, the device waited for at the block's ends; peak memory."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Turns:
    """Median over turns of changed / plain, and the median seconds of one call of each."""

    ratio: float
    plain: float
    changed: float


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Call, device: torch.device, calls: int = 1) -> float:
    """Wall seconds of one of `calls` calls in a row."""
    wait(device)
    begun = time.perf_counter()
    for _ in range(calls):
        call()
    wait(device)
    return (time.perf_counter() - begun) / calls


def block(call: Call, device: torch.device, target: float) -> int:
    """Calls that take about `target` seconds together, after a warm-up of three."""
    for _ in range(3):
        call()
    return max(1, min(1000, round(target / max(seconds(call, device), 1e-7))))


def median_seconds(call: Call, device: torch.device, repeats: int = 7, target: float = 0.03) -> float:
    """Median over blocks of the seconds of one call."""
    calls = block(call, device, target)
    return statistics.median(seconds(call, device, calls) for _ in range(repeats))


def in_turns(plain: Call, changed: Call, device: torch.device, repeats: int = 5, target: float = 0.15) -> Turns:
    """Both in turns A B B A, so that a drift of the clock meets both alike."""
    calls = block(plain, device, target)
    for _ in range(3):
        changed()
    ratios: list[float] = []
    plains: list[float] = []
    others: list[float] = []
    for _ in range(repeats):
        first, second, third, fourth = (seconds(call, device, calls) for call in (plain, changed, changed, plain))
        plains += [first, fourth]
        others += [second, third]
        ratios.append((second + third) / (first + fourth))
    return Turns(statistics.median(ratios), statistics.median(plains), statistics.median(others))


def peak_mib(call: Call, device: torch.device) -> float | None:
    """Most device memory allocated at once while `call` runs, what lies there already included; None on a CPU."""
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    wait(device)
    return torch.cuda.max_memory_allocated(device) / 2**20


def held_mib(device: torch.device) -> float:
    """Device memory allocated now; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) / 2**20 if device.type == "cuda" else 0.0


def waits_for_device(call: Call, device: torch.device) -> bool | None:
    """Whether `call` makes the processor wait for the GPU; None on a CPU."""
    if device.type != "cuda":
        return None
    call()
    wait(device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        call()
    except RuntimeError as error:
        if "synchroniz" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
        wait(device)
    return False

"""How every benchmark here measures: variants interleaved in one process, warm-up, medians, ratios, peak memory."""

from __future__ import annotations

import copy
import gc
import json
import platform
import resource
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import trimtab

RESULTS = Path(__file__).parent / "results"


def training_step(model: nn.Module, lever: Any | None, batch: int) -> Callable[[], Any]:
    """A step of plain SGD on a copy of `model` and 32 x 32 images of ten classes, with a lever attached where one is given."""
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    if lever is not None:
        trimtab.attach(optimizer, lever, model=model)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(batch, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (batch,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


@dataclass(frozen=True)
class Timing:
    """Median, least and greatest seconds of one variant (wall), and the median of its CPU seconds."""

    median: float
    least: float
    greatest: float
    cpu_median: float
    repeats: int


def interleaved(
    variants: Mapping[str, Callable[[], Any]],
    repeats: int = 15,
    warm_up: int = 3,
    before: Callable[[], Any] | None = None,
) -> dict[str, Timing]:
    """Time the variants A B C A B C ... so that a drift of the machine's speed meets all of them alike.

    `before` is called before each round and not timed: it puts back what the variants change.
    """
    for _ in range(warm_up):
        if before is not None:
            before()
        for call in variants.values():
            call()
    walls: dict[str, list[float]] = {name: [] for name in variants}
    cpus: dict[str, list[float]] = {name: [] for name in variants}
    gc.collect()
    for _ in range(repeats):
        if before is not None:
            before()
        for name, call in variants.items():
            cpu, wall = time.process_time(), time.perf_counter()
            call()
            walls[name].append(time.perf_counter() - wall)
            cpus[name].append(time.process_time() - cpu)
    return {
        name: Timing(
            statistics.median(walls[name]), min(walls[name]), max(walls[name]), statistics.median(cpus[name]), repeats
        )
        for name in variants
    }


def paired_ratio(
    variants: Mapping[str, Callable[[], Any]], of: str, to: str, repeats: int = 15, warm_up: int = 3
) -> float:
    """Median over interleaved pairs of wall(of) / wall(to)."""
    for _ in range(warm_up):
        variants[of](), variants[to]()
    ratios = []
    for _ in range(repeats):
        seconds = {}
        for name in (of, to):
            start = time.perf_counter()
            variants[name]()
            seconds[name] = time.perf_counter() - start
        ratios.append(seconds[of] / seconds[to])
    return statistics.median(ratios)


def cpu_ratio_in_turns(
    plain: Callable[[], Any], changed: Callable[[], Any], repeats: int, warm_up: int = 1
) -> tuple[float, float]:
    """Median ratio changed / plain over turns A B B A, and least changed / least plain; CPU time of this process."""
    return cpu_ratios_in_turns(plain, {"changed": changed}, repeats, warm_up)["changed"]


def cpu_ratios_in_turns(
    plain: Callable[[], Any], changed: Mapping[str, Callable[[], Any]], repeats: int, warm_up: int = 1
) -> dict[str, tuple[float, float]]:
    """The same of several over turns A B C ... C B A, so that they share the plain one's.

    For an addition of about a hundredth of a step, less than other work on the machine moves a single step: hence the turns, in
    which a drift of the machine's speed cancels, and many of them.
    """

    def cpu(call: Callable[[], Any]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    calls = {"": plain, **changed}
    for _ in range(warm_up):
        for call in calls.values():
            call()
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name in (*calls, *reversed(calls)):
            seconds[name].append(cpu(calls[name]))
    turns = {
        name: [one + other for one, other in zip(all_[::2], all_[1::2], strict=True)] for name, all_ in seconds.items()
    }
    return {
        name: (
            statistics.median(one / other for one, other in zip(turns[name], turns[""], strict=True)),
            min(seconds[name]) / min(seconds[""]),
        )
        for name in changed
    }


def _resident_bytes() -> int:
    with Path("/proc/self/statm").open() as status:
        return int(status.read().split()[1]) * resource.getpagesize()


def peak_extra_bytes(call: Callable[[], Any], interval: float = 0.002) -> int:
    """Greatest growth of resident memory while `call` runs, sampled from a second thread (Linux)."""
    gc.collect()
    before = _resident_bytes()
    peak = before
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.is_set():
            peak = max(peak, _resident_bytes())
            done.wait(interval)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    kept = call()
    peak = max(peak, _resident_bytes())
    done.set()
    watcher.join()
    del kept
    return peak - before


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def record(name: str, rows: list[dict[str, Any]]) -> None:
    """Print the rows (question, ratio, bar, met) and keep them in `benchmarks/results/NAME.json`."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    show(rows)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows."""
    for row in rows:
        print(
            "  ".join(
                f"{key}={value:.4g}" if isinstance(value, float) else f"{key}={value}" for key, value in row.items()
            )
        )
    sys.stdout.flush()

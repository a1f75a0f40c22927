"""What optimizer state in 8 bits costs and saves: bytes, a step against foreach AdamW, codes per element.

Steps are taken one after another, as in a loop of nothing else, and behind the passes of a training, where memory and caches
are what they are there.

Run: `python benchmarks/state_8bit.py`. One thread; processor time.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from harness import interleaved, record
from torch import nn

import trimtab
from trimtab.precision import AdamW8bit, EightBitState
from trimtab.precision.code_book import decode, encode

WIDTH, LAYERS, BATCH = 512, 6, 512


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return net


def within_training(optimizers: dict[nn.Sequential, torch.optim.Optimizer], repeats: int = 9) -> list[float]:
    """Median seconds of each optimizer's step alone, behind a forward and a backward pass of its network."""
    inputs = torch.randn(BATCH, WIDTH)
    seconds: list[list[float]] = [[] for _ in optimizers]
    for _ in range(repeats):
        for own, (net, optimizer) in zip(seconds, optimizers.items(), strict=True):
            optimizer.zero_grad()
            net(inputs).square().mean().backward()
            start = time.process_time()
            optimizer.step()
            own.append(time.process_time() - start)
    return [statistics.median(each[2:]) for each in seconds]


def main() -> None:
    torch.set_num_threads(1)
    plain, under, own = network(), network(), network()
    foreach = torch.optim.AdamW(plain.parameters(), foreach=True)
    leveraged = torch.optim.AdamW(under.parameters(), foreach=True)
    lever = EightBitState()
    handle = trimtab.attach(leveraged, lever, model=under)
    small = AdamW8bit(own.parameters())
    steps: dict[str, Callable[[], Any]] = {
        "foreach AdamW": foreach.step, "EightBitState on it": leveraged.step, "AdamW8bit": small.step,
    }  # fmt: skip
    seconds = {name: timing.cpu_median for name, timing in interleaved(steps, repeats=7, warm_up=2).items()}
    training = within_training({plain: foreach, under: leveraged, own: small})
    within = dict(zip(steps, training, strict=True))
    rows: list[dict[str, Any]] = []
    for where, found in (("steps one after another", seconds), (f"steps of a training, batch {BATCH}", within)):
        for name in ("EightBitState on it", "AdamW8bit"):
            ratio = found[name] / found["foreach AdamW"]
            question = f"{where}, {name} / foreach AdamW"
            rows.append({"question": question, "ratio": ratio, "bar": "<= 3", "met": ratio <= 3})
    for name, (here, full) in (("EightBitState", lever.bytes), ("AdamW8bit", small.state_bytes())):
        ratio = here / full
        question = f"bytes of the state between steps, {name} / 32 bits"
        rows.append({"question": question, "ratio": ratio, "bar": "<= 0.3", "met": ratio <= 0.3})
    handle.remove()
    x = torch.randn(10**6)
    codes = encode(x)
    calls: dict[str, Callable[[], Any]] = {"encode": lambda: encode(x), "decode": lambda: decode(codes, (10**6,))}
    for name, timing in interleaved(calls, repeats=7, warm_up=1).items():
        each = 1e3 * timing.cpu_median
        bar = {"bar": "<= 25", "met": each <= 25} if name == "encode" else {"bar": "none: reported as it is"}
        rows.append({"question": f"ns for each number, {name}", "ratio": each, **bar})
    record("state_8bit", rows)


if __name__ == "__main__":
    main()

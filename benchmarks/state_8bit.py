"""What optimizer state in 8 bits costs and saves: bytes, a step against foreach AdamW, codes per element.

Run: `python benchmarks/state_8bit.py`. One thread; processor time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import interleaved, record
from torch import nn

import trimtab
from trimtab.precision import AdamW8bit, EightBitState
from trimtab.precision.code_book import decode, encode

WIDTH, LAYERS = 512, 6


def network() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)
    return net


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
    rows: list[dict[str, Any]] = []
    for name in ("EightBitState on it", "AdamW8bit"):
        ratio = seconds[name] / seconds["foreach AdamW"]
        rows.append({"question": f"a step, {name} / foreach AdamW", "ratio": ratio, "bar": "<= 3", "met": ratio <= 3})
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

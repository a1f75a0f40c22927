"""Rounding against a device copy; selection and sweep of 10^8 weights against a streaming read and torch's own."""

from __future__ import annotations

from typing import Any

import torch
from part import Part
from timing import median_seconds, peak_mib
from torch import nn

from trimtab.precision import MX, quantize
from trimtab.pruning import one_shot, sweep
from trimtab.tensors.selection import kth_threshold

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def rounding(part: Part) -> None:
    """GB/s of quantize, read and written bytes counted, as a fraction of what `copy_` reaches."""
    device = part.device
    count = 10**4 if part.dry else 10**8
    settings: dict[str, Any] = {"repeats": 1, "target": 0.0} if part.dry else {"repeats": 5, "target": 0.05}
    x = torch.randn(count, device=device)
    out = torch.empty_like(x)
    generator = torch.Generator(device).manual_seed(0)
    copy = 8 * count / median_seconds(lambda: out.copy_(x), device, **settings)
    part.row(f"copy of {count:.0e} float32, GB/s", copy / 1e9)
    forms: dict[str, tuple[dict[str, Any], str | None]] = {
        "e4m3, nearest": ({"format": "e4m3"}, ">= 0.6"),
        "e2m1, MX": ({"format": "e2m1", "scaling": MX()}, ">= 0.4"),
        "e4m3, stochastic": ({"format": "e4m3", "rounding": "stochastic", "generator": generator}, None),
        "bf16, nearest": ({"format": "bf16"}, None),
    }
    for name, (given, bar) in forms.items():

        def one(_: Part, name: str = name, given: dict[str, Any] = given, bar: str | None = bar) -> None:
            speed = 8 * count / median_seconds(lambda: quantize(x, out=out, **given), device, **settings)
            peak = peak_mib(lambda: quantize(x, out=out, **given), device)
            part.row(
                f"quantize {name}, {count:.0e} float32: bandwidth / that of a copy", speed / copy, bar,
                gb_per_s=speed / 1e9, peak_over_tensor=None if peak is None else peak * 2**20 / (4 * count),
            )  # fmt: skip

        part.group(f"quantize {name}", one)


def selection(part: Part) -> None:
    """Threshold, masks and zeros of all weights at once; eight sparsities in a sweep."""
    device = part.device
    width, layers = (64, 2) if part.dry else (768, 14)
    shapes = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)] * layers
    torch.manual_seed(0)
    model = nn.ModuleList([nn.Linear(inputs, outputs, bias=False, device=device) for outputs, inputs in shapes])
    weights = [layer.weight.detach() for layer in model]
    joined = torch.cat([weight.flatten() for weight in weights])
    removed = round(0.9 * joined.numel())
    settings: dict[str, Any] = {"repeats": 1, "target": 0.0} if part.dry else {"repeats": 3, "target": 0.02}

    def timed(call: Any) -> tuple[float, float | None]:
        return median_seconds(call, device, **settings), peak_mib(call, device)

    read, _ = timed(lambda: joined.sum())
    n = f"{joined.numel():.2g} float32"
    part.row(f"streaming read (sum) of {n}, GB/s", 4 * joined.numel() / read / 1e9, ms=1e3 * read)

    def threshold(_: Part) -> None:
        own, peak = timed(lambda: kth_threshold(weights, [removed], absolute=True))
        part.row(f"threshold of 90 % of {n} / streaming read", own / read, "<= 3", ms=1e3 * own, peak_mib=peak)

    def whole(_: Part) -> None:
        own, peak = timed(lambda: one_shot(model, 0.9).undo())
        part.row(f"one_shot and undo of {n} / streaming read", own / read, None, ms=1e3 * own, peak_mib=peak)
        eight, peak = timed(lambda: [None for _ in sweep(model, SPARSITIES)])
        part.row(f"sweep of 8 sparsities of {n} / one_shot and undo", eight / own, None, ms=1e3 * eight, peak_mib=peak)

    def peers(_: Part) -> None:
        absolute = joined.abs()
        for name, call in {
            "torch.kthvalue": lambda: torch.kthvalue(absolute, removed),
            "torch.topk": lambda: torch.topk(absolute, joined.numel() - removed, sorted=False),
        }.items():
            own, peak = timed(call)
            part.row(f"{name} of {n} / streaming read", own / read, None, ms=1e3 * own, peak_mib=peak)

    part.group("threshold", threshold)
    part.group("one_shot and sweep", whole)
    part.group("torch's own selection", peers)

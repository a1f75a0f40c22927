"""GradientTracker: what it adds to a training step, and what it costs beside loops that read every number at once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from gradient_transforms import SETS, parameters
from harness import cpu_ratio_in_turns, interleaved, peak_extra_bytes, record
from torch import Tensor, nn

import trimtab
from trimtab import models
from trimtab.observe import GradientTracker, chunks, quantities
from trimtab.parameters import Rule, entries

BATCH = 128
SMALLEST = torch.finfo(torch.float16).smallest_normal
WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__")
"""What a Python program can wait for a device by."""


def training_step(model: nn.Module, tracker: GradientTracker | None) -> Callable[[], Any]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    if tracker is not None:
        trimtab.attach(optimizer, tracker, model=model)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()

    return step


def norms_loop(held: list[nn.Parameter]) -> list[dict[str, float]]:
    """Per-layer norms, each read at once."""
    return [{"norm": p.grad.norm().item()} for p in held if p.grad is not None]


def moments_loop(held: list[nn.Parameter]) -> list[dict[str, float]]:
    """Mean, deviation and norm of each layer, each read at once."""
    return [
        {"mean": g.mean().item(), "std": g.std(correction=0).item(), "norm": g.norm().item()}
        for g in (p.grad for p in held)
        if g is not None
    ]


def full_loop(held: list[nn.Parameter]) -> list[dict[str, float]]:
    """Everything the tracker records of gradients."""
    rows = []
    for parameter, row in zip(held, moments_loop(held), strict=True):
        g: Tensor = parameter.grad  # type: ignore[assignment]
        rows.append(
            row
            | {
                "max_abs": g.abs().max().item(),
                "zeros": (g == 0).sum().item(),
                "nan": g.isnan().sum().item(),
                "inf": g.isinf().sum().item(),
                "subnormal": ((g != 0) & (g.abs() < SMALLEST)).sum().item(),
            }
        )
    return rows


LOOPS: dict[str, tuple[Callable[[list[nn.Parameter]], list[dict[str, float]]], tuple[str, ...]]] = {
    "norms": (norms_loop, ("norm",)),
    "mean, std, norm": (moments_loop, ("mean", "std", "norm")),
    "all statistics": (
        full_loop,
        ("mean", "variance", "std", "norm", "max_abs", "zeros", "nan", "inf", "subnormal"),
    ),
}


def against_loops(name: str, held: list[nn.Parameter]) -> list[dict[str, Any]]:
    """CPU seconds of one logged step, flushes included."""
    rows = []
    for label, (loop, statistics) in LOOPS.items():
        known = entries(held)
        steps = 32 if len(held) > 100 else 4
        tracker = GradientTracker(statistics=statistics, capacity=steps, rule=Rule(min_ndim=0))

        def track(tracker: GradientTracker = tracker, known: Any = known) -> None:
            tracker.before_step(known)
            tracker.after_step(known)

        def read(loop: Any = loop, held: Any = held) -> None:
            loop(held)

        track()
        for found, wanted in zip(tracker.table().to_pylist(), loop(held), strict=False):
            for statistic, value in wanted.items():
                assert abs(found[statistic] - value) <= 1e-4 * abs(value) + 1e-9, (label, statistic)
        timing = interleaved(
            {
                "tracker": lambda track=track, steps=steps: [track() for _ in range(steps)],
                "loop": lambda read=read, steps=steps: [read() for _ in range(steps)],
            },
            repeats=5,
            warm_up=1,
        )
        ratio = timing["loop"].cpu_median / timing["tracker"].cpu_median
        rows.append(
            {
                "question": f"{name}: loop that reads {label} / GradientTracker of the same, CPU time",
                "ratio": ratio,
                "bar": ">= 3",
                "met": ratio >= 3,
                "tracker_cpu_ms": 1e3 * timing["tracker"].cpu_median / steps,
                "extra_mib": peak_extra_bytes(track) / 2**20,
            }
        )
    return rows


def waits_between_flushes(model: nn.Module) -> int:
    """How often a tracked step waits for the device, counted in the form that is used on accelerators."""
    real_chunks = chunks.Chunks
    quantities.Chunks = lambda sizes, dtype, device: real_chunks(sizes, dtype, device, looks=False)
    plain, tracked = (training_step(model, tracker) for tracker in (None, GradientTracker()))
    counts = {}
    try:
        for name, step in (("plain", plain), ("tracked", tracked)):
            step()  # layouts are made at the first one
            waits: list[str] = []
            originals = {method: getattr(Tensor, method) for method in WAITS}

            def counted(method: str, waits: list[str] = waits, originals: Any = originals) -> Callable[..., Any]:
                def call(tensor: Tensor, *given: Any, **settings: Any) -> Any:
                    waits.append(method)
                    return originals[method](tensor, *given, **settings)

                return call

            for method in WAITS:
                setattr(Tensor, method, counted(method))
            try:
                for _ in range(5):
                    step()
            finally:
                for method, original in originals.items():
                    setattr(Tensor, method, original)
            counts[name] = len(waits)
    finally:
        quantities.Chunks = real_chunks
    return counts["tracked"] - counts["plain"]


def main() -> None:
    torch.manual_seed(0)
    model = models.create("resnet20", num_classes=10)
    rows: list[dict[str, Any]] = []
    kinds = {"gradients": ("gradients",), "gradients, weights, updates": ("gradients", "weights", "updates")}
    for label, track in kinds.items():
        ratio, least = cpu_ratio_in_turns(
            training_step(model, None), training_step(model, GradientTracker(track)), repeats=15
        )
        rows.append(
            {
                "question": f"resnet20, batch {BATCH}: step with {label} tracked every step / plain step",
                "ratio": ratio,
                "bar": "<= 1.05",
                "met": ratio <= 1.05,
                "ratio_of_least": least,
            }
        )
    waits = waits_between_flushes(model)
    rows.append(
        {"question": "waits for the device added between flushes", "ratio": float(waits), "bar": "0", "met": waits == 0}
    )
    network = list(models.create("resnet56", num_classes=10).parameters())
    for parameter in network:
        parameter.grad = torch.randn(parameter.shape) * 0.01 + 0.003
    rows += against_loops("resnet56, 170 tensors", network)
    for name in SETS:
        rows += against_loops(name, parameters(name))
    record("tracker", rows)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()

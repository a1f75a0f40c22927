"""GradientTracker: what it adds to a training step, and what it costs beside loops that read every number at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from gradient_transforms import SETS, parameters
from harness import cpu_ratio_in_turns, interleaved, peak_extra_bytes, record, training_step
from torch import Tensor, nn

import trimtab
from trimtab import models
from trimtab.observe import GradientTracker, quantities, sums
from trimtab.parameters import Rule, entries

BATCH = 128
SMALLEST = torch.finfo(torch.float16).smallest_normal
WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__", "__int__", "__index__", "__array__")
"""What a Python program can wait for a device by."""


ALL_KINDS = ("gradients", "weights", "updates")


class Block(nn.Module):
    """A pre-norm transformer block with causal attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x, shape (batch, length, width)."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(nn.functional.gelu(self.up(self.norms[1](x))))


def language_step(tracker: GradientTracker | None, batch: int = 8, length: int = 64) -> Callable[[], Any]:
    """A step of AdamW on a GPT of 6 layers and 2.8 million weights."""
    torch.manual_seed(0)
    width, tokens = 192, 256
    model = nn.Sequential(
        nn.Embedding(tokens, width), *(Block(width, 6) for _ in range(6)), nn.LayerNorm(width), nn.Linear(width, tokens)
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if tracker is not None:
        trimtab.attach(optimizer, tracker, model=model)
    text = torch.randint(0, tokens, (batch, length + 1))

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten()).backward()
        optimizer.step()

    return step


def many_layers_step(tracker: GradientTracker, layers: int = 3000) -> Callable[[], Any]:
    """A step of SGD on 3,000 tensors of 8 x 8."""
    torch.manual_seed(0)
    held = [nn.Parameter(torch.randn(8, 8)) for _ in range(layers)]
    for parameter in held:
        parameter.grad = torch.randn(8, 8)
    optimizer = torch.optim.SGD(held, lr=0.0)
    trimtab.attach(optimizer, tracker)
    return optimizer.step


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
    real_sums = sums.Sums
    quantities.Sums = lambda sizes, dtype, device: real_sums(sizes, dtype, device, looks=False)
    plain, tracked = (training_step(model, tracker, BATCH) for tracker in (None, GradientTracker()))
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
        quantities.Sums = real_sums
    return counts["tracked"] - counts["plain"]


def main() -> None:
    torch.manual_seed(0)
    model = models.create("resnet20", num_classes=10)
    rows: list[dict[str, Any]] = []
    kinds = {"gradients": ("gradients",), "gradients, weights, updates": ("gradients", "weights", "updates")}
    for label, track in kinds.items():
        ratio, least = cpu_ratio_in_turns(
            training_step(model, None, BATCH), training_step(model, GradientTracker(track), BATCH), repeats=15
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
    ratio, least = cpu_ratio_in_turns(language_step(None), language_step(GradientTracker(ALL_KINDS)), repeats=15)
    rows.append(
        {
            "question": "GPT of 6 layers, 8 x 64 tokens: step with all three kinds tracked every step / plain step",
            "ratio": ratio,
            "bar": "<= 1.15",
            "met": ratio <= 1.15,
            "ratio_of_least": least,
        }
    )
    # what a chunk-wise pass must beat: one mean, deviation, norm and maximum per tensor and kind
    many = many_layers_step(GradientTracker(ALL_KINDS))
    tensors = [torch.randn(8, 8) for _ in range(3000)]

    def one_by_one() -> None:
        for _ in ALL_KINDS:
            for tensor in tensors:
                tensor.mean(), tensor.std(correction=0), tensor.norm(), tensor.abs().max()

    timing = interleaved({"tracker": many, "loop": one_by_one}, repeats=7, warm_up=1)
    ratio = timing["tracker"].cpu_median / timing["loop"].cpu_median
    rows.append(
        {
            "question": "3,000 layers of 8 x 8, three kinds: tracked step / four statistics of each tensor one by one, unread",
            "ratio": ratio,
            "bar": "<= 1",
            "met": ratio <= 1,
            "tracker_cpu_ms": 1e3 * timing["tracker"].cpu_median,
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

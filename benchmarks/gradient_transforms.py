"""Autoscale, Centralize, ZScore and PerpendicularGradient against torch's clip_grad_norm_: many small tensors, few big ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from harness import interleaved, peak_extra_bytes, record
from torch import Tensor, nn

from trimtab.gradients import (
    AdaGC,
    Autoscale,
    Centralize,
    ClipNorm,
    GradientTransform,
    NormGrowthLimiter,
    PerpendicularGradient,
    ZClip,
    ZScore,
)
from trimtab.parameters import Entry, entries


class Tightening(ClipNorm):
    """Clips at every call but the first: each bound is nine tenths of the norm that the call before found."""

    def before_step(self, parameters: Sequence[Entry]) -> None:
        """Tighten the bound, then clip."""
        if found := self.signals():
            self.max_norm = 0.9 * float(found["norm"])
        super().before_step(parameters)


SETS: dict[str, list[tuple[int, ...]]] = {
    "180 small tensors": [(width, width, 3, 3) for width in (16, 32, 64) for _ in range(60)],
    "6 big tensors": [(2048, 2048)] * 6,
}
TRANSFORMS: dict[str, Callable[[], GradientTransform]] = {
    "Autoscale": Autoscale,
    "Autoscale by channel": lambda: Autoscale(granularity="channel"),
    "Centralize": Centralize,
    "ZScore": ZScore,
    "ZScore by channel": lambda: ZScore("channel"),
    "ClipNorm, nothing to clip": lambda: ClipNorm(1e9),
    "ClipNorm that clips": lambda: Tightening(1e9),
    "PerpendicularGradient": PerpendicularGradient,
    "NormGrowthLimiter": NormGrowthLimiter,
    "ZClip": lambda: ZClip(max_norm=None),
    "AdaGC": lambda: AdaGC(absolute=1e9),
}


def parameters(name: str) -> list[nn.Parameter]:
    """The set's tensors with gradients, the same at every call."""
    generator = torch.Generator().manual_seed(0)
    held = []
    for shape in SETS[name]:
        parameter = nn.Parameter(torch.randn(shape, generator=generator))
        parameter.grad = torch.randn(shape, generator=generator) * 0.01 + 0.003
        held.append(parameter)
    return held


def cpu_turns(calls: Mapping[str, Callable[[], Any]], held: Sequence[Sequence[nn.Parameter]]) -> dict[str, float]:
    """Median CPU seconds over interleaved turns: one thread, so other work on the machine counts little.

    Every turn finds the gradients of `held` as they were: what a transform left of them would not do. Autoscale, for one, makes
    its own result smaller at every call, until float32 holds no square of it.
    """
    now = [parameter.grad for of in held for parameter in of if parameter.grad is not None]
    kept = [gradient.clone() for gradient in now]
    timings = interleaved(calls, repeats=15, before=lambda: torch._foreach_copy_(now, kept))
    return {label: timing.cpu_median for label, timing in timings.items()}


def expected(label: str, held: list[nn.Parameter]) -> list[Tensor]:
    """The first step of each transform in float64, the plain way."""
    result = []
    for parameter in held:
        assert parameter.grad is not None
        exact, weight = parameter.grad.double(), parameter.detach().double()
        rows = exact.flatten(1)
        if label.startswith("ClipNorm") or label in ("NormGrowthLimiter", "ZClip", "AdaGC"):
            result.append(exact)
            continue
        if label == "PerpendicularGradient":
            left = exact - (weight * exact).sum() / weight.square().sum() * weight
            result.append(left * exact.norm() / left.norm())
            continue
        dims = 1 if label == "Centralize" or label.endswith("by channel") else (0, 1)
        centred = rows - rows.mean(dims, keepdim=True)
        if label.startswith("ZScore"):
            centred = centred / (rows.std(dims, keepdim=True) + (1e-8 if dims == 1 else 1e-12))
        result.append(centred.view_as(exact))
    return result


def measure(name: str) -> list[dict[str, Any]]:
    plain = parameters(name)
    calls: dict[str, Callable[[], Any]] = {
        "clip_grad_norm_": lambda: nn.utils.clip_grad_norm_(plain, 1e9, foreach=True)
    }
    all_held = [plain]
    for label, make in TRANSFORMS.items():
        held, transform = parameters(name), make()
        fresh = [parameter.grad.clone() for parameter in held if parameter.grad is not None]
        known = entries(held)
        wanted = expected(label, held)
        transform.before_step(known)
        for parameter, value in zip(held, wanted, strict=True):
            assert float((parameter.grad - value).abs().max() / value.abs().max()) < 1e-4, label
            parameter.grad.copy_(fresh.pop(0))
        all_held.append(held)
        calls[label] = lambda transform=transform, known=known: transform.before_step(known)  # type: ignore[misc]
    seconds = cpu_turns(calls, all_held)
    return [
        {
            "question": f"{name}: {label} / clip_grad_norm_ (foreach), CPU time",
            "ratio": seconds[label] / seconds["clip_grad_norm_"],
            "bar": "<= 2",
            "met": seconds[label] <= 2 * seconds["clip_grad_norm_"],
            "cpu_ms": 1e3 * seconds[label],
            "clip_grad_norm_cpu_ms": 1e3 * seconds["clip_grad_norm_"],
            "extra_mib": peak_extra_bytes(calls[label]) / 2**20,
        }
        for label in TRANSFORMS
    ]


if __name__ == "__main__":
    torch.set_num_threads(1)
    record("gradient_transforms", [row for name in SETS for row in measure(name)])

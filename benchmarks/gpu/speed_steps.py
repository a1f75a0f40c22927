"""What each lever adds to a training step: ResNet-18 at batch 512 and GPT-2 small, bfloat16, fused optimizers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpt import GPT
from part import Part
from timing import held_mib, in_turns, peak_mib, waits_for_device
from torch import Tensor, nn

import trimtab
from trimtab import gradients, models, observe, optimizers, penalties, precision

Change = Callable[[torch.optim.Optimizer, nn.Module], torch.optim.Optimizer]


@dataclass(frozen=True)
class Workload:
    """A network with its optimizer and one batch; every call of `step` builds a fresh network from the same seed."""

    label: str
    model: Callable[[], nn.Module]
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]
    inputs: Tensor
    targets: Tensor

    def step(self, change: Change | None) -> Callable[[], Any]:
        """A function that takes one step of a network of its own."""
        device = self.inputs.device
        torch.manual_seed(0)
        model = self.model().to(device)
        base = self.optimizer(list(model.parameters()))
        optimizer = base if change is None else change(base, model)

        def closure() -> Tensor:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(self.inputs)
            loss = nn.functional.cross_entropy(logits.flatten(0, -2).float(), self.targets.flatten())
            loss.backward()
            return loss.detach()

        if optimizer is not base:
            return lambda: optimizer.step(closure)

        def plain() -> None:
            closure()
            base.step()

        return plain


def attached(make: Callable[[], Any]) -> Change:
    """The optimizer with one lever attached."""

    def change(base: torch.optim.Optimizer, model: nn.Module) -> torch.optim.Optimizer:
        trimtab.attach(base, make(), model=model)
        return base

    return change


CHANGES: dict[str, tuple[Change, str | None]] = {
    "VAR": (attached(lambda: penalties.VarianceAmplifier(1e-5)), "<= 1.05"),
    "GradientTracker": (attached(lambda: observe.GradientTracker()), "<= 1.02"),
    "SAM": (lambda base, model: optimizers.SAM(base, 0.05, model), "<= 2.05"),
    "CrAM+": (lambda base, model: optimizers.CrAM(base, model=model), None),
    "Autoscale": (attached(lambda: gradients.Autoscale()), None),
    "LowPrecision e4m3 gradients": (attached(lambda: precision.LowPrecision("e4m3")), None),
    "LowPrecision MX e2m1 gradients": (
        attached(lambda: precision.LowPrecision("e2m1", scaling=precision.MX())), None
    ),
}  # fmt: skip
"""Each change of the step, and its bar against the plain one."""


def measure(part: Part, work: Workload) -> None:
    """Every change against the plain fused step, and CrAM+ against SAM."""
    device = part.device
    already = held_mib(device)
    settings: dict[str, Any] = {"repeats": 1, "target": 0.0} if part.dry else {"repeats": 5, "target": 0.12}
    plain = work.step(None)
    base_peak = peak_mib(lambda: [plain() for _ in range(3)], device)
    base_peak = None if base_peak is None else base_peak - already
    part.row(f"{work.label}: the plain step waits for the device", waits=waits_for_device(plain, device))
    found: dict[str, float] = {}
    for name, (change, bar) in CHANGES.items():

        def one(_: Part, name: str = name, change: Change = change, bar: str | None = bar) -> None:
            held = held_mib(device)  # the plain network, which lies beside this one
            step = work.step(change)
            peak = peak_mib(lambda: [step() for _ in range(3)], device)
            own = None if peak is None or base_peak is None else peak - held
            turns = in_turns(plain, step, device, **settings)
            found[name] = turns.changed / turns.plain
            part.row(
                f"{work.label}: step with {name} / plain step", turns.ratio, bar,
                plain_ms=1e3 * turns.plain, changed_ms=1e3 * turns.changed, plain_peak_mib=base_peak, peak_mib=own,
                peak_ratio=None if own is None or base_peak is None else own / base_peak,
            )  # fmt: skip
            # a fresh one, far from the flush of the tracker and the look at the flag of inf and NaN at every 128th step
            waits = waits_for_device(work.step(change), device)
            if name == "GradientTracker":
                part.row(
                    f"{work.label}: waits of a tracked step between flushes", float(bool(waits)), "== 0", waits=waits
                )
            else:
                part.row(f"{work.label}: a step with {name} waits for the device", waits=waits)

        part.group(f"{work.label}: {name}", one)
    if "SAM" in found and "CrAM+" in found:
        part.row(f"{work.label}: step with CrAM+ / step with SAM", found["CrAM+"] / found["SAM"], "<= 1.15")


def resnet18(part: Part) -> None:
    """ResNet-18 for 32 x 32 images, channels last, SGD with momentum."""
    batch, name = (8, "resnet8") if part.dry else (512, "resnet18")
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch, 3, 32, 32, generator=generator).to(part.device, memory_format=torch.channels_last)
    labels = torch.randint(0, 10, (batch,), generator=generator).to(part.device)
    measure(
        part,
        Workload(
            f"{name}, batch {batch}, bf16",
            lambda: models.create(name, num_classes=10).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
            lambda weights: torch.optim.SGD(weights, 0.05, momentum=0.9, weight_decay=5e-4, fused=True),
            images, labels,
        ),
    )  # fmt: skip


def gpt2(part: Part) -> None:
    """GPT-2 small, 8 sequences of 1,024 tokens, AdamW."""
    batch, length, shape = 8, 1024, {}
    if part.dry:
        batch, length, shape = 2, 16, {"vocabulary": 64, "width": 32, "layers": 2, "heads": 2, "context": 16}
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, shape.get("vocabulary", 50257), (batch, length + 1), generator=generator).to(part.device)
    measure(
        part,
        Workload(
            f"{'toy GPT' if part.dry else 'GPT-2 small'}, {batch} x {length} tokens, bf16",
            lambda: GPT(**shape),
            lambda weights: torch.optim.AdamW(weights, 1e-4, fused=True),
            tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(),
        ),
    )  # fmt: skip

"""ShrinkageMeter: what it adds to ten steps of training with rounded gradients, of which one is measured."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from harness import cpu_ratio_in_turns, peak_extra_bytes, record
from torch import nn

import trimtab
from trimtab import models
from trimtab.precision import LowPrecision, ShrinkageMeter, quantize

EVERY, BATCH = 10, 64


def ten_steps(model: nn.Module, meter: ShrinkageMeter | None, format: str) -> tuple[nn.Module, Callable[[], Any]]:
    model = copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    trimtab.attach(optimizer, LowPrecision(format, meter=meter), model=model)
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 10, (BATCH,), generator=generator)

    def steps() -> None:
        for _ in range(EVERY):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), labels).backward()
            optimizer.step()

    return model, steps


def check_measured() -> None:
    """The meter's q of a step is that of the tensors themselves."""
    gradient = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    model = nn.Linear(64, 64, bias=False)
    meter = ShrinkageMeter(every=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trimtab.attach(optimizer, LowPrecision("e2m1", meter=meter), model=model)
    model.weight.grad = gradient.clone()
    optimizer.step()
    rounded = quantize(gradient, "e2m1").double()
    wanted = float((rounded * gradient.double()).sum() / gradient.double().square().sum())
    assert abs(meter.table().to_pylist()[0]["projection"] - wanted) < 1e-12


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    check_measured()
    rows: list[dict[str, Any]] = []
    for name in ("resnet8", "resnet20"):
        model = models.create(name, num_classes=10)
        meter = ShrinkageMeter(every=EVERY)
        bare, plain = ten_steps(model, None, "e4m3")
        watched, metered = ten_steps(model, meter, "e4m3")
        ratio, least = cpu_ratio_in_turns(plain, metered, repeats=5)
        for one, other in zip(bare.parameters(), watched.parameters(), strict=True):
            assert torch.equal(one, other), "metering changed the training"
        measured = set(meter.table()["step"].to_pylist())
        assert measured == set(range(0, 110, EVERY)), measured
        rows.append(
            {
                "question": f"{name}, batch {BATCH}: step with rounded gradients metered every {EVERY} steps / not metered",
                "ratio": ratio,
                "bar": "<= 1.05",
                "met": ratio <= 1.05,
                "ratio_of_least": least,
                "extra_mib": peak_extra_bytes(metered) / 2**20,
                "extra_mib_not_metered": peak_extra_bytes(plain) / 2**20,
            }
        )
    record("shrinkage_meter", rows)


if __name__ == "__main__":
    main()

"""What a step with a second gradient costs: SAM and ASAM against plain SGD, CrAM+ against our SAM.

ResNet-20 on CIFAR-sized images, batch 64, one thread, two variants in turns A B B A in one process. Run:
`python benchmarks/step_sharpness.py`
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from harness import record
from torch import Tensor, nn

from trimtab.models import create
from trimtab.optimizers import ASAM, SAM, CrAM

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)
REPEATS = 9


def paired(variant: Callable[[], Tensor], other: Callable[[], Tensor]) -> dict[str, float]:
    """Over turns A B B A by CPU time: median of (B + B) / (A + A), and the least B over the least A."""

    def cpu(call: Callable[[], Tensor]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    other(), variant()
    ratios, of_variant, of_other = [], [], []
    for _ in range(REPEATS):
        first, second, third, fourth = cpu(other), cpu(variant), cpu(variant), cpu(other)
        ratios.append((second + third) / (first + fourth))
        of_variant += [second, third]
        of_other += [first, fourth]
    return {
        "ratio": statistics.median(ratios),
        "ratio_of_least": min(of_variant) / min(of_other),
        "seconds": statistics.median(of_variant),
    }


def stepper(images: Tensor, labels: Tensor, wrap: Callable[..., torch.optim.Optimizer] | None) -> Callable[[], Tensor]:
    """A function that takes one training step of a network of its own."""
    torch.manual_seed(0)
    model = create("resnet20", num_classes=10)
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    optimizer = base if wrap is None else wrap(base, model)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss.detach()

    if wrap is not None and optimizer is not base:
        return lambda: optimizer.step(closure)
    if wrap is not None:  # the floor: a second gradient and nothing else

        def twice() -> Tensor:
            loss = closure()
            closure()
            optimizer.step()
            return loss

        return twice

    def plain() -> Tensor:
        loss = closure()
        optimizer.step()
        return loss

    return plain


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(64, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (64,), generator=generator)
    makers = {
        "sgd": None,
        "two gradients": lambda base, model: base,
        "sam": lambda base, model: SAM(base, rho=0.05, model=model),
        "sam without model=": lambda base, model: SAM(base, rho=0.05),
        "asam": lambda base, model: ASAM(base, model=model),
        "cram+": lambda base, model: CrAM(base, 0.15, SPARSITIES, model=model),
        "cram+ 2:4": lambda base, model: CrAM(base, 0.15, SPARSITIES, pattern="2:4", model=model),
    }
    variants = {name: stepper(images, labels, wrap) for name, wrap in makers.items()}
    losses = {name: float(call()) for name, call in variants.items()}
    assert len(set(losses.values())) == 1, losses  # the first pass of each is the plain one
    # With rho = 0 the wrapped step is the base step: same losses over several steps.
    plain, still = stepper(images, labels, None), stepper(images, labels, lambda base, model: SAM(base, 0.0, model))
    assert [float(plain()) for _ in range(3)] == [float(still()) for _ in range(3)]

    bars = {
        "two gradients": ("sgd", None), "sam": ("sgd", 2.05), "sam without model=": ("sgd", 2.05), "asam": ("sgd", None),
        "cram+": ("sam", 1.2), "cram+ 2:4": ("sam", 1.2),
    }  # fmt: skip
    rows = []
    for name, (other, bar) in bars.items():
        measured = paired(variants[name], variants[other])
        rows.append(
            {
                "question": f"CPU time of a {name} step / a {other} step, resnet20, batch 64",
                **measured,
                "bar": None if bar is None else f"<= {bar}",
                "met": None if bar is None else measured["ratio"] <= bar,
            }
        )
    record("step_sharpness", rows)


if __name__ == "__main__":
    main()

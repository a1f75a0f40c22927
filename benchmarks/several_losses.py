"""What joining three losses costs beyond their backward passes, and choosing and scoring examples beside training.

One thread, CPU time: ResNet-20 at 64 images of 32 x 32, gradients of three losses by autograd alone against `Combine.backward`;
the choice of a coreset of 128 of 256 examples by 2560 features beside a training step on those 128; `ExampleScores.see` beside
a training step.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from harness import interleaved, record
from torch.nn import functional as F

from trimtab.curricula import BatchCoreset
from trimtab.models import create
from trimtab.multitask import CAGrad, Combine, EqualNorm, GCond, GradientDropout, PCGrad, SimilarityMomentum
from trimtab.observe import ExampleScores

KINDS: list[Any] = [PCGrad, CAGrad, EqualNorm, GradientDropout, SimilarityMomentum, GCond]


def main() -> None:
    """Time all, and write the results."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = create("resnet20", num_classes=10)
    images, targets, ids = torch.randn(64, 3, 32, 32), torch.randint(10, (64,)), torch.arange(64)
    parameters = list(network.parameters())

    def losses() -> list[torch.Tensor]:
        logits = network(images)
        return [F.cross_entropy(logits, targets), logits.square().mean(), logits.logsumexp(1).square().mean()]

    def plain() -> None:
        found = losses()
        for at, loss in enumerate(found):
            torch.autograd.grad(loss, parameters, retain_graph=at < 2)

    def joined(combine: Combine) -> None:
        network.zero_grad()
        combine.backward(losses())

    scores = ExampleScores(64)

    def training() -> None:
        network.zero_grad()
        F.cross_entropy(network(images), targets).backward()

    logits = network(images).detach()

    def see() -> None:
        scores.see(ids, logits, targets)

    features, half, wanted = torch.randn(256, 2560), torch.randn(128, 3, 32, 32), torch.randint(10, (128,))

    def chosen() -> None:
        network.zero_grad()
        F.cross_entropy(network(half), wanted).backward()

    calls: dict[str, Any] = {"plain": plain, "training": training, "see": see, "chosen": chosen}
    calls["coreset"] = lambda: BatchCoreset().choose(features)
    for kind in KINDS:
        calls[kind.__name__] = partial(joined, Combine(network, kind()))
    times = interleaved(calls, repeats=5, warm_up=1)
    rows = []
    for kind in KINDS:
        ratio = times[kind.__name__].cpu_median / times["plain"].cpu_median
        question = f"{kind.__name__} / forward and three backward passes of ResNet-20 at 64 images, CPU time"
        rows.append({"question": question, "ratio": ratio, "bar": "<= 1.1", "met": ratio <= 1.1})
    ratio = 1 + times["see"].cpu_median / times["training"].cpu_median
    question = "a training step of ResNet-20 at 64 images with EL2N and forgetting / without, CPU time"
    rows.append({"question": question, "ratio": ratio, "bar": "<= 1.01", "met": ratio <= 1.01})
    share = times["coreset"].cpu_median / times["chosen"].cpu_median
    question = "coreset of 128 from 256 x 2560 features / training step of ResNet-20 on the 128, CPU time"
    rows.append({"question": question, "ratio": share, "bar": "<= 0.05", "met": share <= 0.05})
    record("several_losses", rows)


if __name__ == "__main__":
    main()

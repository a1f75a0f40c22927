"""What pruning along training costs: SAFE's step against SAM's and plain SGD's; others against plain SGD's, on average.

Whole rounds of steps are compared, so that projections and prunings count with their share: 32 steps for SAFE (one projection),
100 for gradual pruning, RigL and SET (one pruning or move), 65 for AC/DC (one phase of a run of 1300 steps), 20 for low rank
(one projection) and for N:M, which masks anew at every step. ResNet-20 on CIFAR-sized images, batch 64, one thread, two
variants in turns A B B A in one process, CPU time.

Run: `python benchmarks/step_masked.py`; shorter, and then kept in no file: `--turns 1 --network resnet8 --only rigl`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import cpu_ratio_in_turns, record, show
from torch import Tensor, nn

import trimtab
from trimtab.models import create
from trimtab.penalties import SAFE
from trimtab.pruning import ACDC, DynamicSparse, GradualPruning, LowRankProjection, NMDecay

LONG = 10_000
"""Steps of the run that the levers believe in, so that they are in the middle of it."""


class Loop:
    """A network that trains; a call takes so many steps."""

    def __init__(self, network: str, rho: float, lever: Any, steps: int, data: tuple[Tensor, Tensor]) -> None:
        torch.manual_seed(0)
        self.model, self.data, self.steps = create(network, num_classes=10), data, steps
        self.optimizer: Any = torch.optim.SGD(self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        if rho:
            self.optimizer = trimtab.optimizers.SAM(self.optimizer, rho=rho, model=self.model)
        if lever is not None:
            trimtab.attach(self.optimizer, lever, model=self.model)

    def closure(self) -> Tensor:
        """The gradients of the batch."""
        self.optimizer.zero_grad()
        images, labels = self.data
        loss = nn.functional.cross_entropy(self.model(images), labels)
        loss.backward()
        return loss.detach()

    def __call__(self) -> None:
        """Take the steps."""
        for _ in range(self.steps):
            if isinstance(self.optimizer, trimtab.optimizers.SAM):
                self.optimizer.step(self.closure)
            else:
                self.closure()
                self.optimizer.step()


def gradual() -> GradualPruning:
    lever = GradualPruning(0.95, end=1.0, every=100, total_steps=LONG)
    lever.steps = LONG // 2
    return lever


def dynamic(grow: Any) -> DynamicSparse:
    return DynamicSparse(0.95, grow=grow, every=100, stop=1.0, total_steps=LONG)


def ac_dc() -> ACDC:
    lever = ACDC(0.95, total_steps=1300)  # phases of 65 steps
    lever.steps = 130
    return lever


def fading() -> NMDecay:
    lever = NMDecay(2, 4, indivisible="leave_out", total_steps=LONG)
    lever.steps = LONG // 4
    return lever


def safe() -> SAFE:
    lever = SAFE(sparsity=0.95, total_steps=LONG)
    lever.steps = LONG // 2
    return lever


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--only", nargs="*", default=[])
    given = parser.parse_args()
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(64, 3, 32, 32, generator=generator), torch.randint(10, (64,), generator=generator)
    plain = "a plain step"
    questions: dict[str, tuple[str, str, float, Callable[[], Any], int, float]] = {
        "safe+sam": ("a SAFE step (rho 0.1)", "a SAM step", 0.1, safe, 32, 1.10),
        "safe": ("a SAFE step (rho 0)", plain, 0.0, safe, 32, 1.08),
        "gradual": ("a step of gradual pruning, on average", plain, 0.0, gradual, 100, 1.02),
        "rigl": ("a step of RigL, on average", plain, 0.0, lambda: dynamic("gradient"), 100, 1.03),
        "set": ("a step of SET, on average", plain, 0.0, lambda: dynamic("random"), 100, 1.03),
        "ac_dc": ("a step of AC/DC, on average", plain, 0.0, ac_dc, 65, 1.02),
        "nm_decay": ("a step of NMDecay 2:4", plain, 0.0, fading, 20, 1.15),
        "low_rank": ("a step of low rank (every 20th projects), on average", plain, 0.0, LowRankProjection, 20, 1.10),
    }
    rows = []
    for name in given.only or questions:
        own, other, rho, lever, steps, bar = questions[name]
        base, changed = (Loop(given.network, rho, one, steps, data) for one in (None, lever()))
        ratio, least = cpu_ratio_in_turns(base, changed, given.turns, warm_up=0)
        rows.append(
            {
                "question": f"{own} / {other}, {given.network}, batch 64, CPU time over {steps} steps",
                "ratio": ratio,
                "bar": f"<= {bar:.2f}",
                "met": ratio <= bar,
                "ratio_of_least": least,
            }
        )
    if (given.turns, given.network, given.only) == (3, "resnet20", []):
        record("step_masked", rows)
    else:
        show(rows)


if __name__ == "__main__":
    main()

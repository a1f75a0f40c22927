"""What the black box adds to a training step: a guard at every step, meters and tracker at every tenth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import cpu_ratios_in_turns, record
from torch import Tensor, nn
from tracker import Block

import trimtab
from trimtab import models
from trimtab.observe import ActivationStatistics, AttentionStatistics, GradientTracker, NLMCosine, UpdateRatio
from trimtab.optimizers import SpikeGuard

BAR, BATCH, EVERY, TURNS = 1.05, 64, 10, 2
Loss = Callable[[nn.Module], Tensor]


def pictures() -> tuple[nn.Module, Loss]:
    """ResNet-20 and a batch of 32 x 32 images."""
    inputs, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    return models.create("resnet20", num_classes=10), lambda net: nn.functional.cross_entropy(net(inputs), labels)


def text() -> tuple[nn.Module, Loss]:
    """A GPT of 6 layers and 2.8 million weights."""
    width, tokens = 192, 256
    net = nn.Sequential(
        nn.Embedding(tokens, width), *(Block(width, 6) for _ in range(6)), nn.LayerNorm(width), nn.Linear(width, tokens)
    )
    read = torch.randint(0, tokens, (8, 65))
    return net, lambda net: nn.functional.cross_entropy(net(read[:, :-1]).flatten(0, 1), read[:, 1:].flatten())


def guard(net: nn.Module) -> list[Any]:
    """The guard alone, as it is by default."""
    return [SpikeGuard("warn")]


def box(net: nn.Module) -> list[Any]:
    """Guard, tracker and meters."""
    meters = [UpdateRatio(every=EVERY), NLMCosine(every=EVERY), ActivationStatistics(net, every=EVERY)]
    meters += [AttentionStatistics(net, every=EVERY)] if any(isinstance(one, Block) for one in net.modules()) else []
    tracker = GradientTracker(every=EVERY)
    tracker.watch(meters)
    return [tracker, *meters, SpikeGuard("warn")]


LEVERS = {"SpikeGuard": guard, "guard, tracker and meters": box}


def steps(
    build: Callable[[], tuple[nn.Module, Loss]], levers: Callable[[nn.Module], list[Any]] | None
) -> Callable[[], Any]:
    """Ten steps of AdamW, so that each of the box's turns is met once."""
    torch.manual_seed(0)
    net, loss_of = build()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
    acting = [] if levers is None else levers(net)
    if acting:
        trimtab.attach(optimizer, *acting, model=net)

    def run() -> None:
        for _ in range(EVERY):
            optimizer.zero_grad()
            loss = loss_of(net)
            for lever in acting:
                if isinstance(lever, SpikeGuard):
                    lever.see(loss)
            loss.backward()
            optimizer.step()

    return run


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for label, build in {"ResNet-20": pictures, "GPT, 6 layers": text}.items():
        changed = {what: steps(build, levers) for what, levers in LEVERS.items()}
        for what, (ratio, _) in cpu_ratios_in_turns(steps(build, None), changed, TURNS).items():
            question = f"{label}: step with {what} / plain step, CPU time"
            rows.append({"question": question, "ratio": ratio, "bar": f"<= {BAR}", "met": ratio <= BAR})
    record("black_box", rows)


if __name__ == "__main__":
    main()

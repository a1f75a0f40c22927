"""Losses of policies at (64, 2048) tokens, forward and backward, against a plain PPO loss written out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from harness import interleaved, record
from torch import Tensor

from trimtab.losses.policy import drpo, gppo, ppo

SHAPE = (64, 2048)
generator = torch.Generator().manual_seed(0)
LOGP, OLD = (-torch.rand(SHAPE, generator=generator) for _ in range(2))
ADVANTAGE = torch.randn(SHAPE[0], generator=generator)
MASK = torch.arange(SHAPE[1]) < torch.randint(200, SHAPE[1], (SHAPE[0], 1), generator=generator)
GROUPS = [at // 8 for at in range(SHAPE[0])]


def plain(logp: Tensor) -> Tensor:
    """PPO as written everywhere, with the share of tokens clipped and the KL that every trainer logs."""
    difference = (logp - OLD).clamp(-20, 20)
    ratio = difference.exp()
    first, second = -ADVANTAGE[:, None] * ratio, -ADVANTAGE[:, None] * ratio.clamp(0.8, 1.28)
    loss = (torch.max(first, second) * MASK).sum() / MASK.sum()
    with torch.no_grad():
        share, kl = ((second > first) * MASK).sum() / MASK.sum(), (-difference * MASK).sum() / MASK.sum()
    assert share >= 0 or kl >= 0
    return loss


def timed(loss: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
    """Forward and backward."""
    leaf = LOGP.clone().requires_grad_()

    def call() -> None:
        leaf.grad = None
        loss(leaf).backward()  # type: ignore[no-untyped-call]

    return call


def main() -> None:
    """Time all, and write the results."""
    torch.set_num_threads(1)
    losses = {
        "plain": plain,
        "ppo": lambda logp: ppo(logp, OLD, ADVANTAGE, MASK, high=0.28)[0],
        "gppo": lambda logp: gppo(logp, OLD, ADVANTAGE, MASK)[0],
        "drpo": lambda logp: drpo(logp, OLD, ADVANTAGE, MASK, GROUPS)[0],
    }
    assert torch.allclose(losses["ppo"](LOGP), plain(LOGP))
    times = interleaved({name: timed(loss) for name, loss in losses.items()}, repeats=31)
    ratios = {name: times[name].cpu_median / times["plain"].cpu_median for name in ("ppo", "gppo", "drpo")}
    record(
        "policy_losses",
        [
            {
                "question": f"{name} / a plain PPO loss at (64, 2048), forward and backward, CPU time",
                "ratio": ratio,
                "bar": "<= 1.2",
                "met": ratio <= 1.2,
                "plain_cpu_ms": 1e3 * times["plain"].cpu_median,
            }
            for name, ratio in ratios.items()
        ],
    )


if __name__ == "__main__":
    main()

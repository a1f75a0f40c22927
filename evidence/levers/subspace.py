"""Fira against GaLore and Adam on a small language model: what the rest of the gradient is worth.

python evidence/levers/subspace.py      # three seeds, some CPU minutes -> docs/evidence/levers-subspace.json
"""

from __future__ import annotations

from typing import Any

import torch
from figures import TUNING, Row, measure
from observers import LENGTH, batches, loss_of, text
from torch import Tensor

from trimtab.models.gpt import ByteGPT
from trimtab.optimizers import Fira, fira_groups

RANK, STEPS, GAP = 8, 300, 50
RATES = {"adam": (1e-3, 3e-3, 1e-2), "fira": (3e-3, 1e-2, 3e-2), "galore": (3e-3, 1e-2, 3e-2)}


class GaLore(Fira):
    """Fira without what the projection misses."""

    def _full_rank(self, group: dict[str, Any], step: int, gradient: Tensor, memory: dict[str, Tensor]) -> Tensor:
        super()._full_rank(group, step, gradient, memory)
        psi, q = memory["exp_avg"] / (memory["exp_avg_sq"].sqrt() + group["eps"]), memory["projection"]
        found: Tensor = group["alpha"] * (psi @ q if gradient.shape[0] >= gradient.shape[1] else q @ psi)
        return found


def learned(how: str, rate: float, seed: int, steps: int = STEPS) -> tuple[float, float]:
    """Loss on unseen text after so many steps, and the states' bytes as a share of Adam's."""
    torch.manual_seed(seed)
    net = ByteGPT(256, LENGTH, dim=64, depth=2, heads=2)
    optimizer: Any
    if how == "adam":
        optimizer = torch.optim.Adam(net.parameters(), lr=rate)
    else:
        optimizer = (Fira if how == "fira" else GaLore)(fira_groups(net, RANK), lr=rate, update_gap=GAP)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    for batch in batches(text("a"), steps, seed):
        optimizer.zero_grad()
        loss_of(net, batch).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        loss = sum(loss_of(net, batch).item() for batch in batches(text("a", test=True), 16, seed)) / 16
    if how == "adam":
        return loss, 1.0
    own, adams = optimizer.state_bytes()
    return loss, own / adams


_chosen: dict[str, float] = {}


def figures(seed: int) -> Row:
    """Each way at the rate that is best after a third of the steps on the seeds for tuning."""
    found: Row = {}
    for how, rates in RATES.items():
        if how not in _chosen:
            means = {rate: sum(learned(how, rate, at, STEPS // 3)[0] for at in TUNING) for rate in rates}
            _chosen[how] = min(means, key=lambda rate: means[rate])
        found[f"{how} rate"] = _chosen[how]
        found[f"{how} loss"], found[f"{how} states"] = learned(how, _chosen[how], seed)
    return found


if __name__ == "__main__":
    measure("subspace", figures, seeds=3)

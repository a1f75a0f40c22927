"""The network and the batches of the adapters' tests, and the loop of one's own that the adapters must equal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import trimtab
from trimtab.levers import Lever
from trimtab.parameters import Entry

INPUTS = torch.randn(48, 6, generator=torch.Generator().manual_seed(5))
LABELS = torch.arange(48) % 3
BATCHES = [[INPUTS[first : first + 8], LABELS[first : first + 8]] for first in range(0, 48, 8)]


def network() -> nn.Sequential:
    """Six inputs, five hidden units, three classes; the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def stateful_levers() -> list[Lever]:
    """A penalty, then a transform whose factor depends on every step before."""
    return [trimtab.penalties.VarianceAmplifier(1e-3), trimtab.gradients.Autoscale("running_max")]


class Seen:
    """A lever that remembers the gradients it is given."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.gradients: list[list[Tensor]] = []

    def before_step(self, parameters: Sequence[Entry]) -> None:
        self.names = [entry.name for entry in parameters]
        self.gradients.append(
            [entry.parameter.grad.clone() for entry in parameters if entry.parameter.grad is not None]
        )

    def norms(self) -> list[float]:
        """Global norm of every step."""
        return [float(torch.cat([gradient.flatten() for gradient in step]).norm()) for step in self.gradients]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def own_loop(*levers: Lever, accumulate: int = 1, steps: int = 6) -> nn.Sequential:
    """SGD with momentum over the batches in order, `accumulate` of them per step."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    trimtab.attach(optimizer, *levers, model=net)
    for step in range(steps):
        optimizer.zero_grad()
        for number in range(accumulate):
            inputs, labels = BATCHES[(step * accumulate + number) % len(BATCHES)]
            (nn.functional.cross_entropy(net(inputs), labels) / accumulate).backward()
        optimizer.step()
    return net

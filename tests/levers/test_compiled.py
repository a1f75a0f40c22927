"""A compiled optimizer.step: levers stay outside the graph, with the same numbers and nothing traced anew."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters

import trimtab
from trimtab.gradients import Autoscale, ClipNorm
from trimtab.observe import GradientTracker


def run(compiled: bool, levers: bool) -> tuple[Tensor, int, int]:
    torch._dynamo.reset()
    counters.clear()
    torch.manual_seed(0)
    net = nn.Linear(4, 2)
    optimizer, tracker = torch.optim.SGD(net.parameters(), lr=0.1), GradientTracker(("gradients", "updates"))
    if levers:
        trimtab.attach(optimizer, tracker, Autoscale(), ClipNorm(0.01), model=net)
    step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
    for seed in range(4):
        optimizer.zero_grad()
        net(torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))).square().mean().backward()
        step()
    return net.weight.detach().clone(), tracker.step, counters["stats"]["unique_graphs"]


def test_same_numbers_and_as_many_graphs_as_without_levers() -> None:
    compiled, steps, graphs = run(True, True)
    assert torch.equal(compiled, run(False, True)[0])
    assert steps == 4
    assert graphs == run(True, False)[2] > 0

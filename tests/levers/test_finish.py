"""What levers do last: `Handle.finish`, once, also over a saved state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

import trimtab
from trimtab.parameters import Entry


class Halves:
    """A lever that halves the weights at the end."""

    needs_recalibration = True

    def __init__(self) -> None:
        self.steps, self.seen = 0, [""]

    def before_step(self, parameters: Sequence[Entry]) -> None:
        pass

    def end_step(self) -> None:
        self.steps += 1

    def finish(self, parameters: Sequence[Entry]) -> None:
        self.seen = [entry.name for entry in parameters]
        for entry in parameters:
            entry.parameter.mul_(0.5)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def attached() -> tuple[nn.Linear, torch.optim.Optimizer, trimtab.levers.Handle]:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    return net, optimizer, trimtab.attach(optimizer, trimtab.penalties.L1(0.0), Halves(), model=net)


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    net(torch.ones(1, 3)).sum().backward()
    optimizer.step()


def test_finish_acts_once_until_the_next_step() -> None:
    net, optimizer, handle = attached()
    step(net, optimizer)
    before = net.weight.detach().clone()
    assert handle.finish() is True
    assert torch.equal(net.weight, before / 2)
    assert handle.levers[1].seen == ["weight", "bias"]  # type: ignore[attr-defined]
    assert handle.finish() is False
    assert torch.equal(net.weight, before / 2)
    step(net, optimizer)
    moved = net.weight.detach().clone()
    assert handle.finish() is True
    assert torch.equal(net.weight, moved / 2)


def test_a_state_saved_after_the_end_is_not_finished_again() -> None:
    net, optimizer, handle = attached()
    step(net, optimizer)
    early = handle.state_dict()
    handle.finish()
    late, weight = handle.state_dict(), net.weight.detach().clone()
    again, _, resumed = attached()
    again.load_state_dict(net.state_dict())
    resumed.load_state_dict(late)
    assert resumed.finish() is False
    assert torch.equal(again.weight, weight)
    resumed.load_state_dict(early)
    assert resumed.finish() is True
    assert torch.equal(again.weight, weight / 2)
    early.pop("finished")  # a state of before there was an end
    resumed.load_state_dict(early)
    assert resumed.finish() is True


def test_levers_without_an_end_leave_the_weights() -> None:
    net = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = net.weight.detach().clone()
    assert trimtab.attach(optimizer, trimtab.penalties.L1(0.5)).finish() is False
    assert torch.equal(net.weight, before)

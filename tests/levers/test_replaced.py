"""A parameter that the model replaces after attach is noticed and named."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import trimtab
from tests.levers.test_attach import Recorder
from trimtab.penalties import L1


def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    net(torch.ones(1, 4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("what", ["module", "parameter"])
def test_named_once(what: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, L1(0.1), model=net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(net, optimizer)
    if what == "module":
        net[1] = nn.Linear(4, 2)
    else:
        net[1].weight = nn.Parameter(torch.ones(2, 4))
    named = r"no longer holds 2 .*: 1\.weight, 1\.bias\." if what == "module" else r"no longer holds 1 .*: 1\.weight\."
    with pytest.warns(UserWarning, match=named):
        step(net, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(net, optimizer)


def test_a_parameter_that_only_moved_gets_its_new_name() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    optimizer, recorder = torch.optim.SGD(net.parameters(), lr=0.1), Recorder()
    trimtab.attach(optimizer, recorder, model=net)
    net.append(nn.Identity())
    net[1] = nn.Sequential(net[1])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step(net, optimizer)
    assert list(recorder.seen[0]) == ["0.weight", "0.bias", "1.0.weight", "1.0.bias"]

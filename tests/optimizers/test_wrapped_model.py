"""Wrappers inside an outer autocast, and with a model that is not theirs."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from trimtab.optimizers import SAM, CrAM
from trimtab.optimizers.two_pass import TwoPassOptimizer


@pytest.mark.parametrize("kind", ["sam", "cram"])
def test_the_perturbation_acts_inside_an_outer_autocast(kind: str) -> None:
    net = nn.Linear(4, 1, bias=False)
    base = torch.optim.SGD(net.parameters(), lr=0.1)
    optimizer: TwoPassOptimizer = SAM(base, rho=1.0) if kind == "sam" else CrAM(base, rho=1.0, sparsities=[0.5])
    losses = []

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = (net(torch.ones(8, 4)) - 3).float().square().mean()
        loss.backward()
        losses.append(loss.item())
        return loss

    with torch.autocast("cpu", dtype=torch.bfloat16):
        optimizer.step(closure)
    assert abs(losses[0] - losses[1]) > 0.01


def test_a_model_that_is_not_the_optimizers_is_refused() -> None:
    net, other = nn.Linear(2, 2), nn.Linear(2, 2)
    with pytest.raises(ValueError, match="holds none of the parameters of Linear"):
        SAM(torch.optim.SGD(net.parameters(), lr=0.1), model=other)


def test_every_buffer_moves_once_per_step() -> None:
    torch.manual_seed(0)
    net = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    torch.manual_seed(0)
    twin = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))
    optimizer = SAM(torch.optim.SGD(net.parameters(), lr=0.0), model=net)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = net(torch.ones(2, 4)).square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    twin(torch.ones(2, 4))
    for ours, theirs in zip(net.buffers(), twin.buffers(), strict=True):
        assert torch.equal(ours, theirs)

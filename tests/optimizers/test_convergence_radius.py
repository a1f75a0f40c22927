"""ConvergenceRadius: closed form, both products, spikes of the rate, momentum, what is refused."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.optimizers import ConvergenceRadius


def network() -> nn.Sequential:
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 3)).double()


def stepped(lever: ConvergenceRadius, lr: float, net: nn.Module | None = None) -> tuple[nn.Module, dict[str, Tensor]]:
    net = network() if net is None else net
    old = copy.deepcopy(dict(net.named_parameters()))
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    trimtab.attach(optimizer, lever, model=net)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(12, 5, dtype=torch.float64, generator=generator)
    torch.manual_seed(0)
    nn.functional.cross_entropy(net(inputs), torch.arange(12) % 3).backward()
    optimizer.step()
    return net, {name: parameter.detach() - old[name] for name, parameter in net.named_parameters()}


def test_a_linear_model_has_the_closed_form() -> None:
    """Its logits are linear in the weights: after a step capped at r = 1 the largest spread of their change is pi."""
    net = nn.Linear(5, 3, bias=False).double()
    lever = ConvergenceRadius()
    _, change = stepped(lever, 50.0, net)
    inputs = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = inputs @ change["weight"].T
    assert (moved.amax(1) - moved.amin(1)).max().item() == pytest.approx(math.pi, rel=1e-12)
    assert float(lever.signals()["radius"]) == pytest.approx(1 / float(lever.signals()["radius_factor"]), rel=1e-12)


def test_both_products_agree_and_small_steps_are_left_alone() -> None:
    found = [ConvergenceRadius("observe"), ConvergenceRadius("observe", product="difference")]
    for lever in found:
        stepped(lever, 1e-3)
    assert float(found[0].signals()["radius"]) == pytest.approx(float(found[1].signals()["radius"]), rel=1e-5)
    plain, capped = stepped(ConvergenceRadius("observe"), 1e-3)[1], stepped(ConvergenceRadius(), 1e-3)[1]
    for name, change in plain.items():
        assert torch.equal(change, capped[name])


def test_a_spike_of_the_rate_is_brought_back_along_its_own_direction() -> None:
    spike, capped = stepped(ConvergenceRadius("observe"), 10.0)[1], stepped(ConvergenceRadius(target=0.5), 10.0)[1]
    flat = [torch.cat([change.flatten() for change in of.values()]) for of in (spike, capped)]
    assert float(torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)) == pytest.approx(1, abs=1e-9)
    assert float(flat[1].norm()) < 0.05 * float(flat[0].norm())


def test_running_statistics_flags_and_random_numbers_stay() -> None:
    plain, looked = stepped(ConvergenceRadius("observe", every=1), 1e-3)[0], network()
    optimizer = torch.optim.Adam(looked.parameters(), lr=1e-3)
    inputs = torch.randn(12, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    nn.functional.cross_entropy(looked(inputs), torch.arange(12) % 3).backward()
    optimizer.step()
    for one, other in zip(plain.state_dict().values(), looked.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert all(module.training for module in plain.modules())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the network"):
        trimtab.attach(torch.optim.SGD(network().parameters(), lr=0.1), ConvergenceRadius())
    net = nn.Linear(5, 1).double()
    trimtab.attach(optimizer := torch.optim.SGD(net.parameters(), lr=0.1), ConvergenceRadius(), model=net)
    net(torch.ones(12, 5, dtype=torch.float64)).sum().backward()
    with pytest.raises(ValueError, match=r"logits of shape \(examples, classes, ...\), the model gives \(12, 1\)"):
        optimizer.step()
    with pytest.raises(ValueError, match="mode must be one of 'cap', 'set', 'observe', got 'clip'"):
        ConvergenceRadius("clip")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target must be finite and above 0, got 0"):
        ConvergenceRadius(target=0)

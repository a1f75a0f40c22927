"""ConvergenceRadius: closed form, both products, spikes of the rate, momentum, what is refused."""

from __future__ import annotations

import cmath
import copy
import math

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.optimizers import ConvergenceRadius
from trimtab.optimizers.convergence_radius import radius_share


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


def test_the_radii_are_those_of_the_logarithms_first_zero() -> None:
    k = torch.arange(12, dtype=torch.float64)
    along = ((1.3 * k + 1.4).sin() + 0.5 * (0.37 * k * k + 2).cos()).reshape(4, 3)
    found = radius_share(torch.zeros(4, 3), along, binary=False).amax()
    assert 1 / float(found) == pytest.approx(1.566237709, rel=1e-9)
    logits, change = torch.tensor([[0.0, 0.3]], dtype=torch.float64), torch.tensor([[-2.0, 2.0]], dtype=torch.float64)
    radius = 1 / float(radius_share(logits, change, binary=True))
    assert radius == pytest.approx(0.788971023, rel=1e-9)
    zero = complex(-0.3, math.pi) / 4  # 1 + exp(margin + t * change) vanishes there
    assert abs(1 + cmath.exp(0.3 + 4 * zero)) < 1e-12
    assert abs(zero) == pytest.approx(radius, rel=1e-12)


@pytest.mark.parametrize("product", ["jvp", "difference"])
def test_two_classes_may_move_as_far_as_their_margin_allows(product: str) -> None:
    net = nn.Linear(5, 2, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(torch.linspace(-3, 3, 10, dtype=torch.float64).reshape(2, 5))
    inputs = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = net(inputs).detach()
    lever = ConvergenceRadius(binary=True, product=product)  # type: ignore[arg-type]
    trimtab.attach(optimizer := torch.optim.SGD(net.parameters(), lr=1e3), lever, model=net)
    nn.functional.cross_entropy(net(inputs), torch.arange(6) % 2).backward()
    optimizer.step()
    moved = net(inputs).detach() - before
    share = (moved[:, 1] - moved[:, 0]).abs() / ((before[:, 1] - before[:, 0]) ** 2 + math.pi**2).sqrt()
    assert float(share.max()) == pytest.approx(1, rel=1e-6)


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
    net, two = network(), ConvergenceRadius(binary=True)
    trimtab.attach(optimizer := torch.optim.SGD(net.parameters(), lr=0.1), two, model=net)
    nn.functional.cross_entropy(net(torch.randn(4, 5).double()), torch.arange(4) % 3).backward()
    with pytest.raises(ValueError, match=r"binary=True.*\(4, 3\)"):
        optimizer.step()

"""step(closure): the loss that the optimizer is given belongs to the gradients that the levers left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.gradients import Centralize, Chain
from trimtab.penalties import L1, HoyerSquare, VarianceAmplifier

INPUTS = torch.randn(64, 5, generator=torch.Generator().manual_seed(1)).double()
TARGETS = torch.randn(64, 3, generator=torch.Generator().manual_seed(2)).double()


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(5, 3).double()


def minimum(attached: bool, strength: float = 0.02) -> tuple[list[Tensor], float]:
    """Weights and loss after LBFGS with line search; the penalty (smooth around its minimum) in either form."""
    net, penalty = network(), HoyerSquare(strength)
    optimizer = torch.optim.LBFGS(
        net.parameters(), max_iter=200, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    if attached:
        trimtab.attach(optimizer, penalty, model=net)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(INPUTS), TARGETS)
        if not attached:
            loss = loss + penalty.value(net)
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    with torch.no_grad():
        final = nn.functional.mse_loss(net(INPUTS), TARGETS) + penalty.value(net)
    return [parameter.detach().clone() for parameter in net.parameters()], float(final)


def test_line_search_reaches_the_same_minimum_in_both_forms() -> None:
    attached, loss = minimum(True)
    by_hand, wanted = minimum(False)
    torch.testing.assert_close(attached, by_hand, rtol=1e-6, atol=1e-8)
    assert loss == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("levers", [(), (L1(0.5),), (Centralize(), Chain(VarianceAmplifier(0.1), Centralize()))])
def test_step_returns_loss_plus_value(levers: tuple[object, ...]) -> None:
    net = network()
    terms = [item for lever in levers for item in getattr(lever, "transforms", (lever,)) if hasattr(item, "value")]
    wanted = nn.functional.mse_loss(net(INPUTS), TARGETS) + sum(term.value(net) for term in terms)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handles = [trimtab.attach(optimizer, lever, model=net) for lever in levers]

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(net(INPUTS), TARGETS)
        loss.backward()
        return loss

    torch.testing.assert_close(optimizer.step(closure).detach(), wanted.detach())
    for handle in handles:
        handle.remove()


def test_numbers_and_none_as_losses() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    trimtab.attach(optimizer, L1(0.5), model=net)
    assert optimizer.step(lambda: 1.0) == pytest.approx(1.0 + 0.5 * float(net.weight.detach().abs().sum()))
    assert optimizer.step(lambda: None) is None

"""Penalties of weights that a module computes from others: on the weight that the product uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import trimtab
from trimtab.penalties import L1, HoyerSquare, Penalty, VarianceAmplifier

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")

FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "older weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "older spectral_norm": nn.utils.spectral_norm,
    "orthogonal": lambda layer: parametrizations.orthogonal(layer, orthogonal_map="cayley"),
}
PENALTIES = (L1(0.3), HoyerSquare(0.2), VarianceAmplifier(1e-3))


def net_of(form: str) -> nn.Sequential:
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 5), FORMS[form](nn.Linear(5, 4))).double()
    net(torch.ones(1, 6, dtype=torch.float64))
    return net.eval()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("penalty", PENALTIES, ids=lambda penalty: type(penalty).__name__)
def test_the_step_gets_the_gradient_of_the_value_and_the_value_is_of_the_weight(form: str, penalty: Penalty) -> None:
    net = net_of(form)
    net(torch.zeros(1, 6, dtype=torch.float64))
    plain = [nn.Parameter(layer.weight.detach().clone()) for layer in net]
    torch.testing.assert_close(penalty.value(net), penalty.value(plain).detach(), check_dtype=False)
    assert list(penalty.per_layer(net)) == ["0.weight", "1.weight"]
    names, parameters = zip(*net.named_parameters(), strict=True)
    expected = torch.autograd.grad(penalty.value(net), parameters, allow_unused=True, materialize_grads=True)
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer = torch.optim.SGD(parameters, lr=0.0)
    with trimtab.attach(optimizer, penalty, model=net):
        optimizer.step()
    for name, parameter, gradient in zip(names, parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-9, atol=1e-12, msg=name)


def test_the_gain_alone_is_no_weight() -> None:
    net = net_of("weight_norm")
    penalty = L1(1.0)
    net[0].weight.data.zero_()
    expected = net[1].weight.abs().sum()
    torch.testing.assert_close(penalty.value(net), expected)


def test_a_weight_without_any_gradient_is_left_alone() -> None:
    net = net_of("weight_norm")
    net[0].weight.grad = torch.zeros_like(net[0].weight)
    L1(1.0).add_gradient_(net)
    assert all(parameter.grad is None for parameter in net[1].parameters())
    chain = net[1].parametrizations["weight"]
    chain.original0.requires_grad_(False)  # a frozen gain
    chain.original1.grad = torch.zeros_like(chain.original1)
    L1(1.0).add_gradient_(net)
    assert chain.original0.grad is None
    assert chain.original1.grad.any()


def test_parts_without_a_model_are_left_out_and_say_so() -> None:
    net = net_of("weight_norm")
    penalty = L1(1.0)
    penalty.value(torch.optim.SGD(net.named_parameters()))
    reasons = {entry.name: reason for entry, reason in penalty.left_out}
    assert "pass model=" in reasons["1.parametrizations.weight.original0"]

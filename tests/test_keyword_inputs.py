"""Whatever hooks layers does the same where a layer is called with its input by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab import attach
from trimtab.gradients import ActivationClip, RouteByLabel, TrAct
from trimtab.optimizers import mup_scale_
from trimtab.precision import Binarize, LowPrecision
from trimtab.pruning import MaskTuning, gate_channels, gate_heads


class Network(nn.Module):
    """Three linear layers, called by position or by name."""

    def __init__(self, named: bool, width: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.named = named
        self.up, self.mid, self.head = nn.Linear(4, width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.up, self.mid):
            x = (layer(input=x) if self.named else layer(x)).tanh()
        return self.head(input=x) if self.named else self.head(x)


def attached(lever: Any) -> Callable[[Network], Any]:
    return lambda net: attach(torch.optim.SGD(net.parameters(), lr=0.1), lever(), model=net)


def routed(net: Network) -> RouteByLabel:
    lever = RouteByLabel({"mid.weight": (slice(None), slice(0, 3))})
    attached(lambda: lever)(net)
    lever.label = "retain"
    return lever


HOOKING: dict[str, Callable[[Network], Any]] = {
    "tract": lambda net: TrAct(net.up),
    "activation_clip": lambda net: ActivationClip(net.mid, 1e-3, dim=-1),
    "route_by_label": routed,
    "binarize": attached(lambda: Binarize(activations=True, ends=True)),
    "activations": attached(lambda: LowPrecision(activations=("e2m1", "e2m1"))),
    "matmul": attached(lambda: LowPrecision(matmul="mxfp4")),
    "mup": lambda net: mup_scale_(net, Network(net.named, 4)),
    "mask_tuning": lambda net: MaskTuning(net, include=("mid.weight",)),
    "gates": lambda net: gate_heads(net, outputs={"mid": 4}, init=1.0),
}


@pytest.mark.parametrize("name", HOOKING)
def test_named_and_placed_inputs_are_the_same(name: str) -> None:
    found = []
    for named in (False, True):
        net = Network(named)
        plain = copy.deepcopy(net)
        kept = HOOKING[name](net)
        torch.manual_seed(3)
        x = torch.randn(5, 4)
        torch.manual_seed(4)
        y = net(x)
        y.square().sum().backward()
        plain(x).square().sum().backward()
        gradients = [one.grad for one in net.parameters() if one.grad is not None]
        assert any(
            one.grad is None or not torch.equal(one.grad, other.grad)  # type: ignore[arg-type]
            for one, other in zip(net.parameters(), plain.parameters(), strict=True)
        ), "it must have something to do"
        found.append((y, *gradients))
        del kept
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_transformers_linear_layer_takes_its_input_by_its_own_name() -> None:
    layers = pytest.importorskip("transformers.pytorch_utils")
    net = nn.ModuleDict({"up": layers.Conv1D(6, 4)})
    attached(lambda: LowPrecision(matmul="mxfp8"))(net)  # type: ignore[arg-type]
    x = torch.randn(3, 4)
    assert torch.equal(net["up"](x=x), net["up"](x))


def test_a_gated_layer_that_is_called_by_itself_draws_for_itself() -> None:
    net = Network(named=False)
    gates = gate_heads(net, outputs={"mid": 4}, init=0.0)
    hidden, full = torch.ones(2, 8), copy.deepcopy(net.mid)
    full._forward_pre_hooks.clear()
    first = net.mid(hidden)  # before any pass through the network
    first.sum().backward()
    net(torch.ones(2, 4)).sum().backward()
    net.mid(hidden).sum().backward()  # not with the draw of the pass that is over
    gates.eval()
    expected = full(hidden * gates.gate("mid").evaluated().repeat_interleave(2))
    assert torch.equal(net.mid(hidden), expected)
    with gates.open():
        assert torch.equal(net.mid(hidden), full(hidden))


def test_checkpointing_asks_for_the_gates_of_its_own_pass() -> None:
    from torch.utils.checkpoint import checkpoint

    found = []
    for again in (False, True):
        net = Network(named=False)
        gates = gate_heads(net, outputs={"mid": 4}, init=0.0)
        if again:
            plain = net.mid.forward
            net.mid.forward = lambda x, plain=plain: checkpoint(plain, x, use_reentrant=False)  # type: ignore[method-assign]
        torch.manual_seed(1)
        loss = net(torch.ones(2, 4)).square().sum()
        with gates.open():  # a teacher's pass in between
            net(torch.ones(2, 4))
        loss.backward()
        found.append([one.grad for one in (*net.parameters(), *gates.parameters())])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_a_copy_to_try_on_has_no_hook_of_gates() -> None:
    pytest.importorskip("torch_pruning")
    net = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    first = gate_channels(net, torch.randn(2, 4))
    first.remove()
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())

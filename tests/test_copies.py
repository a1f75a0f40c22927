"""Every optimizer of the registry: a copy acts on the copy's own parameters as the original would, or is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from trimtab.optimizers import CrAM, GradNormSmooth, Muon
from trimtab.optimizers.wrapper import wrapper_around
from trimtab.precision import AdamW8bit, FrozenCodes, QuantizedZeroOrder, SubspaceHistory
from trimtab.registry import create, of_home

PLAIN: dict[str, dict[str, Any]] = {"fira": {"rank": 2, "update_gap": 2}, "classp": {"threshold": 0.0}}
OPTIMIZERS = (*of_home("optimizer", "solver", "wrapper"), "qzo", "adamw_8bit")


class Network(nn.Module):
    """A layer whose outputs are not its first axis, one that may be in codes, and a head."""

    def __init__(self, codes: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        middle = nn.Linear(6, 6)
        self.up, self.mid = nn.ConvTranspose1d(4, 6, 1), FrozenCodes(middle) if codes else middle
        self.head = nn.Linear(6, 2)

    def loss(self, seed: int) -> Tensor:
        x = torch.randn(5, 4, 1, generator=torch.Generator().manual_seed(seed))
        hidden: Tensor = self.mid(self.up(x).squeeze(-1).tanh())
        return (self.head(hidden.tanh()) - 1).square().mean()


def made(name: str) -> tuple[Network, Any]:
    net = Network(codes=name == "qzo")
    named = list(net.named_parameters())
    if name == "qzo":
        return net, QuantizedZeroOrder(net, 1e-2, unquantized="mezo", subspace=SubspaceHistory(2))
    if name == "adamw_8bit":
        return net, AdamW8bit(net.parameters(), min_size=30)
    if name in of_home("wrapper"):
        return net, create(name, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), model=net)
    if name in ("adamp", "sgdp"):
        return net, create(name, named, delta=10.0, model=net)
    return net, create(name, named, **PLAIN.get(name, {}))


def step(net: Network, optimizer: Any, seed: int) -> None:
    def closure() -> Tensor:
        loss = net.loss(seed)
        if not isinstance(optimizer, GradNormSmooth | QuantizedZeroOrder):
            optimizer.zero_grad()
            loss.backward()
        return loss

    optimizer.step(closure)


def numbers(net: nn.Module) -> list[Tensor]:
    return [one.detach().clone() for one in net.parameters()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))], ids=["copy", "pickle"]
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_copy_moves_its_own_parameters_as_the_original_does(name: str, copied: Callable[[Any], Any]) -> None:
    net, optimizer = made(name)
    for seed in range(3):
        step(net, optimizer, 0 if name == "grad_norm_smooth" else seed)
    before = numbers(net)
    twin, of_twin = copied((net, optimizer))
    for seed in (3, 4):
        step(twin, of_twin, 0 if name == "grad_norm_smooth" else seed)
    assert same(numbers(net), before)
    assert not same(numbers(twin), before)
    for seed in (3, 4):
        step(net, optimizer, 0 if name == "grad_norm_smooth" else seed)
    assert same(numbers(twin), numbers(net))
    assert repr(of_twin) == repr(optimizer)


def test_a_copy_takes_no_lever_along_and_knows_its_wrapper() -> None:
    net, optimizer = made("cram")
    optimizer.register_step_pre_hook(lambda *_: pytest.fail("the original's"))
    twin, other = copy.deepcopy((net, optimizer))
    step(twin, other, 0)
    assert wrapper_around(other.base_optimizer) is other
    assert wrapper_around(optimizer.base_optimizer) is optimizer
    assert isinstance(other, CrAM)
    assert {entry.parameter for entry in other._known.values()} == set(twin.parameters())


def test_a_curvature_of_ones_own_cannot_be_copied() -> None:
    weight = torch.ones(2, requires_grad=True)
    optimizer = GradNormSmooth([weight], curvature=lambda: torch.eye(2))
    with pytest.raises(TypeError, match="a curvature of your own cannot be copied"):
        copy.deepcopy(optimizer)


def test_parameters_that_muon_gets_later_are_judged_like_the_first() -> None:
    net = nn.ModuleDict({name: nn.Linear(4, 4) for name in ("first", "second", "other", "head")})
    optimizer = Muon(net["first"].parameters(), model=net)
    optimizer.add_param_group({"params": list(net["second"].parameters())})
    optimizer.add_param_group({"params": list(net["head"].parameters())})
    assert [group["matrices"] for group in optimizer.param_groups] == [True, False, True, False, False]
    names = [entry.name for entry, _ in optimizer.left_out]
    assert names == ["first.bias", "second.bias", "head.weight", "head.bias"]
    alone = Muon(list(net["first"].named_parameters()))
    with pytest.raises(ValueError, match="has no name"):  # the head could not be told
        alone.add_param_group({"params": [net["other"].weight]})
    assert len(alone.param_groups) == 2
    twin, other = copy.deepcopy((net, optimizer))
    other.add_param_group({"params": list(twin["other"].parameters())})
    assert [group["matrices"] for group in other.param_groups[-2:]] == [True, False]

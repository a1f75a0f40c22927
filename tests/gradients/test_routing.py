"""RouteByLabel: what learns from which batch, in closed form; cutting out; wrong labels."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.distributed import on_two_ranks
from trimtab.gradients import RouteByLabel, forget_heads, forget_units
from trimtab.levers import Handle


def network() -> nn.Sequential:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


INPUTS = torch.randn(16, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
KEPT = slice(0, 6)


def loss(net: nn.Module) -> Tensor:
    found: Tensor = net(INPUTS).square().sum()
    return found


def routed(
    mode: Any = "gradient", build: Any = torch.optim.SGD, **settings: float
) -> tuple[nn.Sequential, Any, RouteByLabel, Handle]:
    net = network()
    route = RouteByLabel(forget_units(net, "0", "2", 0.25), mode=mode)
    optimizer = build(net.parameters(), **{"lr": 0.01, **settings})
    return net, optimizer, route, trimtab.attach(optimizer, route, model=net)


def taught(net: nn.Module, optimizer: Any, route: RouteByLabel, label: Any) -> None:
    optimizer.zero_grad()
    with route.batch(label):
        loss(net).backward()
        optimizer.step()


def test_a_forget_batch_teaches_the_forget_part_alone() -> None:
    net, optimizer, route, _ = routed()
    before, plain = copy.deepcopy(net), network()
    loss(plain).backward()
    taught(net, optimizer, route, "forget")
    assert torch.equal(net[0].weight[KEPT], before[0].weight[KEPT])
    assert torch.equal(net[0].bias[KEPT], before[0].bias[KEPT])
    assert torch.equal(net[2].weight[:, KEPT], before[2].weight[:, KEPT])
    assert torch.equal(net[2].bias, before[2].bias)
    for moved, was, gradient, part in (
        (net[0].weight, before[0].weight, plain[0].weight.grad, slice(6, 8)),
        (net[2].weight, before[2].weight, plain[2].weight.grad, (slice(None), slice(6, 8))),
    ):
        torch.testing.assert_close(moved[part], (was - 0.01 * gradient)[part])  # type: ignore[index]


def test_a_retain_batch_meets_the_network_without_the_part() -> None:
    net, optimizer, route, _ = routed()
    before, small = copy.deepcopy(net), network()
    with torch.no_grad():
        small[2].weight[:, 6:] = 0
    optimizer.zero_grad()
    with route.batch("retain"):
        found = loss(net)
        found.backward()
        expected = loss(small)
        expected.backward()
        torch.testing.assert_close(found, expected)
        optimizer.step()
    assert torch.equal(net[0].weight[6:], before[0].weight[6:])
    assert torch.equal(net[2].weight[:, 6:], before[2].weight[:, 6:])
    torch.testing.assert_close(net[0].weight[KEPT], (before[0].weight - 0.01 * small[0].weight.grad)[KEPT])  # type: ignore[operator]
    with torch.no_grad(), route.batch("retain"):
        assert not torch.equal(net(INPUTS), small(INPUTS))  # evaluation sees all of it


def test_a_batch_without_label_is_plain_training() -> None:
    net, optimizer, route, _ = routed()
    plain = network()
    other = torch.optim.SGD(plain.parameters(), lr=0.01)
    taught(net, optimizer, route, None)
    loss(plain).backward()
    other.step()
    assert all(map(torch.equal, net.parameters(), plain.parameters()))


@pytest.mark.parametrize("mode", ["gradient", "freeze"])
def test_a_zero_gradient_is_no_frozen_weight(mode: Any) -> None:
    net, optimizer, route, _ = routed(mode, torch.optim.AdamW, weight_decay=0.1)
    taught(net, optimizer, route, None)  # moments
    before = net[0].weight.detach().clone()
    taught(net, optimizer, route, "forget")
    now = net[0].weight.detach()
    moved = float((now[KEPT] - before[KEPT]).abs().max())
    assert moved == 0 if mode == "freeze" else moved > 1e-3
    assert float((now[6:] - before[6:]).abs().max()) > 1e-3


def test_ablation_leaves_the_network_without_those_units() -> None:
    net, _, route, handle = routed()
    handle.remove()
    small = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    with torch.no_grad():
        for name, rows in (("weight", slice(0, 6)), ("bias", slice(0, 6))):
            getattr(small[0], name).copy_(getattr(net[0], name)[rows])
        small[2].weight.copy_(net[2].weight[:, :6])
        small[2].bias.copy_(net[2].bias)
    route.ablate(net)
    torch.testing.assert_close(net(INPUTS), small(INPUTS))
    route.ablate(net, redraw=True, generator=torch.Generator().manual_seed(0))
    assert float(net[0].weight[6:].detach().std()) == pytest.approx(float(net[0].weight[:6].detach().std()), rel=0.6)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        parts = self.qkv(tokens).unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4)
        found: Tensor = self.out(nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2))
        return found


def test_heads_are_routed_and_cut_out() -> None:
    torch.manual_seed(0)
    net, tokens = Attention(), torch.randn(2, 5, 8)
    parts = forget_heads(net, "qkv", "out", heads=4)
    assert parts["qkv.weight"] == [6, 7, 14, 15, 22, 23]
    route, optimizer = RouteByLabel(parts), torch.optim.SGD(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, route, model=net)
    before = copy.deepcopy(net)
    with route.batch("retain"):
        net(tokens).square().sum().backward()
        optimizer.step()
    rows = torch.tensor(parts["qkv.weight"])
    assert torch.equal(net.qkv.weight[rows], before.qkv.weight[rows])
    assert not torch.equal(net.qkv.weight, before.qkv.weight)
    route.ablate(net)
    with torch.no_grad():
        other = copy.deepcopy(net)
        other.qkv.weight[rows] = 7.0  # no longer reaches the outputs
        torch.testing.assert_close(other(tokens), net(tokens))


def test_a_step_has_one_label() -> None:
    net, optimizer, route, _ = routed()
    with route.batch("forget"):
        loss(net).backward()
    with route.batch("retain"), pytest.raises(ValueError, match="'retain' while gradients of one of 'forget' wait"):
        loss(net)
    optimizer.step()
    with route.batch("forget"):
        loss(net).backward()
    optimizer.zero_grad()  # that step is not taken
    taught(net, optimizer, route, "retain")
    with pytest.raises(ValueError, match="label must be one of 'forget', 'retain', got 'both'"):
        route.label = "both"  # type: ignore[assignment]


def test_the_label_of_the_passes_counts_where_the_step_stands_outside() -> None:
    net, optimizer, route, _ = routed()
    before = net[2].bias.detach().clone()
    with route.batch("forget"):
        loss(net).backward()
    optimizer.step()
    assert torch.equal(net[2].bias, before)


def test_attention_of_torch_that_cannot_be_masked_is_refused() -> None:
    net = nn.MultiheadAttention(8, 2, batch_first=True)
    route = RouteByLabel({"out_proj.weight": (slice(None), slice(4, 8))})
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, route, model=net)
    tokens = torch.randn(2, 3, 8)
    route.label = "retain"
    net(tokens, tokens, tokens)[0].sum().backward()
    with pytest.raises(
        RuntimeError, match=r"its forward was not called; nn\.MultiheadAttention uses the weight itself"
    ):
        optimizer.step()


@pytest.mark.parametrize(
    ("forget", "words"),
    [
        ({"nothing*": slice(0, 1)}, r"'nothing\*' names no parameter of 0\.weight"),
        ({"0.weight": slice(8, 9)}, "picks nothing of axis 0"),
        ({"0.weight": [9]}, r"does not fit axis 0 of 0\.weight, 8 long"),
        ({"0.*": slice(0, 1), "*.bias": None}, r"two patterns name 0\.bias"),
        ({"0.bias": (slice(0, 1), slice(0, 1))}, r"0\.bias has 1 axes"),
    ],
)
def test_parts_that_do_not_fit_are_refused(forget: Any, words: str) -> None:
    net = network()
    with pytest.raises(ValueError, match=words):
        trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), RouteByLabel(forget), model=net)


def test_what_no_pattern_names_is_said_and_state_must_fit() -> None:
    net = network()
    route = RouteByLabel({"0.weight": slice(6, 8)})
    trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), route, model=net)
    assert next((entry.name, why) for entry, why in route.left_out) == ("0.bias", "no pattern names it")
    route.load_state_dict(route.state_dict())
    with pytest.raises(ValueError, match="do not fit"):
        RouteByLabel({"0.weight": slice(5, 8)}).load_state_dict(route.state_dict())
    with pytest.raises(ValueError, match=r"the outputs of .* are not the inputs of"):
        forget_units(net, "2", "0", 0.5)
    with pytest.raises(ValueError, match="is no multiple"):
        forget_heads(nn.ModuleDict({"q": nn.Linear(6, 6), "o": nn.Linear(6, 6)}), "q", "o", heads=4)


def _labels(rank: int, world: int) -> list[str]:
    found = []
    net = network()
    replicated = nn.parallel.DistributedDataParallel(net)
    route = RouteByLabel(forget_units(net, "0", "2", 0.25))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    trimtab.attach(optimizer, route, model=replicated)
    for labels in (("forget", "forget"), ("forget", "retain")):
        optimizer.zero_grad()
        route.label = labels[rank]  # type: ignore[assignment]
        replicated(INPUTS[rank::2]).square().sum().backward()
        try:
            optimizer.step()
            found.append("stepped")
        except RuntimeError as error:
            found.append(str(error))
    return found


def test_every_layer_that_shares_a_weight_is_masked() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    net[1].weight = net[0].weight
    route = RouteByLabel({"0.weight": (slice(None), slice(2, 4))})
    trimtab.attach(torch.optim.SGD(net.parameters(), lr=0.1), route, model=net)
    inputs = torch.ones(1, 4)
    with route.batch("retain"):
        for layer in net:
            assert torch.equal(layer(inputs), layer(inputs * torch.tensor([1.0, 1.0, 0.0, 0.0])))


def test_ranks_must_have_the_same_label() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in on_two_ranks(_labels):
            assert found[0] == "stepped"
            assert "batches of different labels" in found[1]


def test_a_refused_batch_and_a_skipped_step_leave_no_label_behind() -> None:
    net, optimizer, route, _ = routed()
    with route.batch("forget"):
        loss(net).backward()
    with route.batch("retain"), pytest.raises(ValueError, match="wait for their step"):
        loss(net)
    with route.batch("forget"):
        loss(net).backward()  # the refused one is not remembered
    optimizer.zero_grad(set_to_none=False)  # that step is not taken
    taught(net, optimizer, route, "retain")

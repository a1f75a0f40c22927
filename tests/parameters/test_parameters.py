"""Which tensors are selected, under which names, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest
import torch
from torch import nn

import trimtab
from trimtab.parameters import Entry, Rule, entries, output_axis, select, total_elements, with_names


def names(source: object, rule: Rule | None = None) -> list[str]:
    return [entry.name for entry in select(source, rule).chosen]  # type: ignore[arg-type]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize(
    ("module", "units", "axis"),
    [
        (nn.Linear(3, 5), 5, 0),
        (nn.Conv1d(4, 6, 3, groups=2), 6, 0),
        (nn.Conv2d(4, 6, 3), 6, 0),
        (nn.Conv3d(4, 6, 3), 6, 0),
        (nn.ConvTranspose1d(4, 6, 3), 6, 1),
        (nn.ConvTranspose2d(4, 6, 3), 6, 1),
        (nn.ConvTranspose3d(4, 6, 3), 6, 1),
        (nn.Embedding(11, 3), 11, 0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_output_axis_indexes_output_units(module, units, axis):
    selection = select(module)
    (entry,) = selection.chosen
    assert entry.output_axis == axis
    assert entry.parameter.shape[entry.output_axis] == units
    assert entry.owner is module
    assert [left.name for left, _ in selection.left_out] == [name for name in ("bias",) if hasattr(module, "bias")]


def test_one_dimension_has_no_output_axis():
    assert output_axis(None, torch.ones(3)) is None
    assert output_axis(None, torch.ones(3, 2)) == 0


def test_tied_weights_are_one_entry_with_aliases_that_patterns_see():
    (entry,) = select(Tied()).chosen
    assert (entry.name, entry.aliases) == ("embedding.weight", ("head.weight",))
    assert names(Tied(), Rule(exclude=("head.*",))) == []
    assert names(Tied(), Rule(include=("head.*",))) == ["embedding.weight"]
    tensor = torch.ones(2, 2, requires_grad=True)
    assert len(entries([tensor, tensor])) == 1


def test_left_out_with_reasons():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2), nn.Linear(2, 2))
    net[3].weight.requires_grad_(False)
    reasons = {entry.name: reason for entry, reason in select(net, Rule(exclude=("2.*",))).left_out}
    assert list(reasons) == ["0.bias", "1.weight", "1.bias", "2.weight", "2.bias", "3.weight", "3.bias"]
    assert reasons["1.weight"] == "1 dimension(s), fewer than 2"
    assert reasons["2.weight"] == "name matches exclude pattern '2.*'"
    assert "frozen" in reasons["3.weight"]
    assert names(net, Rule(frozen=True)) == ["0.weight", "2.weight", "3.weight"]
    assert names(net, Rule(min_ndim=1, include=("1.*", "0.*"), exclude=("*.bias",))) == ["0.weight", "1.weight"]
    reasons = {entry.name: reason for entry, reason in select(net, Rule(include=("0.*",))).left_out}
    assert "no include pattern" in reasons["2.weight"]


def test_integer_and_complex_tensors_are_left_out():
    reasons = [reason for _, reason in select([torch.ones(2, 2, dtype=torch.int8), torch.ones(2, 2).cfloat()]).left_out]
    assert len(reasons) == 2
    assert all("not a real floating-point type" in reason for reason in reasons)


def test_patterns_need_names():
    net = nn.Linear(2, 2)
    unnamed = torch.optim.SGD(net.parameters())
    named = torch.optim.SGD(net.named_parameters())
    with pytest.raises(ValueError, match=r"group0\.0 has no name.*named_parameters"):
        select(unnamed, Rule(exclude=("bias",)))
    with pytest.raises(ValueError, match="has no name"):
        select(net.parameters(), Rule(include=("weight",)))
    assert names(named, Rule(include=("weight",))) == ["weight"]
    assert names(unnamed) == ["group0.0"]
    assert [entry.name for entry in with_names(unnamed, net)] == ["weight", "bias"]


def test_bad_rules_and_sources():
    with pytest.raises(ValueError, match="min_ndim must be a whole number of 0 or more, got -1"):
        Rule(min_ndim=-1)
    with pytest.raises(TypeError, match=r"include must be a tuple of patterns, got the string 'conv\*'"):
        Rule(include="conv*")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="single tensor"):
        entries(torch.ones(2, 2))
    with pytest.raises(TypeError, match=r"item 1 must be a tensor.*got int"):
        entries([torch.ones(2), 3])  # type: ignore[list-item]


def test_optimizer_that_does_not_hold_the_model():
    net, other = nn.Linear(2, 2), nn.Linear(3, 3)
    with pytest.raises(ValueError, match="holds none of the 2 parameters of Linear"):
        with_names(torch.optim.SGD(other.parameters()), net)
    mixed = torch.optim.SGD([*net.parameters(), *other.parameters()])
    with pytest.raises(ValueError, match=r"holds 2 parameter\(s\) that Linear does not have.*\(3, 3\)"):
        with_names(mixed, net)


def test_order_and_groups_follow_the_optimizer():
    net = nn.Linear(2, 2)
    optimizer = torch.optim.SGD([{"params": [net.bias]}, {"params": [net.weight]}])
    assert [entry.name for entry in entries(optimizer)] == ["group0.0", "group1.0"]
    assert [entry.name for entry in with_names(optimizer, net)] == ["bias", "weight"]


def test_entries_pass_through_and_count():
    entry = Entry("a", torch.ones(2, 3, requires_grad=True), output_axis=1)
    assert select([entry]).chosen[0] is entry
    assert total_elements([entry, Entry("b", torch.ones(4))]) == 10


def test_wrappers_keep_the_networks_own_names() -> None:
    net = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    names = [entry.name for entry in entries(net)]
    assert [entry.name for entry in entries(torch.compile(net))] == names
    assert [entry.name for entry in entries(nn.DataParallel(net))] == names


def test_a_module_used_twice_gives_its_parameters_both_names() -> None:
    net = nn.Module()
    net.a = nn.Linear(2, 2)
    net.b = net.a
    weight = next(entry for entry in entries(net) if entry.name == "a.weight")
    assert weight.aliases == ("b.weight",)
    assert not select(net, Rule(exclude=("b.*",))).chosen


@pytest.fixture
def one_process() -> Iterator[None]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _compiled(net: nn.Module) -> nn.Module:
    return cast("nn.Module", torch.compile(net, backend="eager"))


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "none": lambda net: net,
    "compile": _compiled,
    "ddp": lambda net: nn.parallel.DistributedDataParallel(net),
    "compile of ddp": lambda net: _compiled(nn.parallel.DistributedDataParallel(net)),
    "ddp of compile": lambda net: nn.parallel.DistributedDataParallel(_compiled(net)),
}


class Backbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.module = nn.Linear(6, 6)  # a genuine part of this name
        self.head = nn.Linear(6, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.module(self.stem(x)))


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("source", ["model", "optimizer and model", "named optimizer"])
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_patterns_see_the_networks_own_names_through_wrappers(wrapper: str, source: str) -> None:
    net = Backbone()
    wrapped = WRAPPERS[wrapper](net)
    optimizer = torch.optim.SGD(
        wrapped.named_parameters() if source.startswith("named") else wrapped.parameters(), lr=0.1
    )
    given = {"model": wrapped, "named optimizer": optimizer, "optimizer and model": with_names(optimizer, wrapped)}[
        source
    ]

    def chosen(rule: Rule) -> list[str]:
        held = {id(parameter): name for name, parameter in net.named_parameters()}
        return [held[id(entry.parameter)] for entry in select(given, rule).chosen]

    assert chosen(Rule(exclude=("head.*",))) == ["stem.weight", "module.weight"]
    assert chosen(Rule(include=("stem.*",))) == ["stem.weight"]
    assert chosen(Rule(include=("module.*",), exclude=("head.weight",)))[-1] == "module.weight"
    assert chosen(Rule(include=("stem.weight", "module.bias"), min_ndim=1)) == ["stem.weight", "module.bias"]


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("named", [False, True])
def test_a_lever_leaves_excluded_layers_alone_in_wrapped_networks(wrapper: str, named: bool) -> None:
    net = Backbone()
    wrapped = WRAPPERS[wrapper](net)
    optimizer = torch.optim.SGD(wrapped.named_parameters() if named else wrapped.parameters(), lr=1.0)
    lever = trimtab.penalties.L1(0.5, rule=Rule(exclude=("head.*", "module.*") if not named else ("head.*",)))
    trimtab.attach(optimizer, lever, model=None if named else wrapped)
    before = {name: parameter.detach().clone() for name, parameter in net.named_parameters()}
    wrapped(torch.zeros(1, 4)).mul(0.0).sum().backward()
    optimizer.step()
    assert torch.allclose(net.stem.weight, before["stem.weight"] - 0.5 * before["stem.weight"].sign())
    assert torch.equal(net.head.weight, before["head.weight"])
    assert torch.equal(net.module.weight, before["module.weight"]) is not named


def test_a_compiled_part_has_its_own_name_too() -> None:
    net = Backbone()
    net.stem = _compiled(net.stem)  # type: ignore[assignment]
    weight = entries(net)[0]
    assert (weight.name, weight.aliases) == ("stem.weight", ())
    assert [entry.name for entry in select(net, Rule(exclude=("stem.weight",))).chosen] == [
        "module.weight",
        "head.weight",
    ]


def test_a_part_named_module_is_not_taken_for_a_wrapper() -> None:
    optimizer = torch.optim.SGD(Backbone().named_parameters(), lr=0.1)
    assert [entry.aliases for entry in entries(optimizer)] == [()] * 6

"""Transforms attached in real loops: order, GradScaler, accumulation, resume, what is skipped and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.gradients import (
    AdaptiveClip,
    Autoscale,
    Centralize,
    Chain,
    ClipNorm,
    GradientTransform,
    ZScore,
)
from trimtab.parameters import Rule
from trimtab.parameters import entries as entries_of
from trimtab.registry import create, of_home

TRANSFORMS: dict[str, Callable[[], GradientTransform]] = {
    "autoscale": Autoscale,
    "autoscale-channel": lambda: Autoscale("ema", "channel"),
    "zscore": ZScore,
    "zscore-channel": lambda: ZScore("channel"),
    "centralize": Centralize,
    "adaptive_clip": lambda: AdaptiveClip(0.01),
    "clip_norm": lambda: ClipNorm(0.05),
}


def network() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.ConvTranspose2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(27, 9), nn.ReLU(), nn.Linear(9, 4)
    ).double()


def data(steps: int = 4) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [
        (
            torch.randn(12, 2, 2, 2, dtype=torch.float64, generator=generator),
            torch.randint(0, 4, (12,), generator=generator),
        )
        for _ in range(steps)
    ]


def weights(net: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in net.parameters()])


def train(*levers: trimtab.Lever) -> Tensor:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    trimtab.attach(optimizer, *levers, model=net)
    for inputs, labels in data():
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimizer.step()
    return weights(net)


class _Spy:
    """Remembers the gradient that reaches it."""

    def __init__(self) -> None:
        self.seen: Tensor | None = None

    def before_step(self, parameters):
        self.seen = torch.cat([entry.parameter.grad.flatten().clone() for entry in parameters])

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


@pytest.mark.parametrize("fused", [False, True])
def test_order_unscale_accumulate_penalty_transforms_clip_step(fused):
    """Each stage sees exactly what the stages before it left, whatever else acts in the step."""
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.5, fused=fused)
    spies = [_Spy() for _ in range(5)]
    penalty, centre, score, clip = trimtab.penalties.L1(0.1), Centralize(), ZScore(), ClipNorm(0.3)
    trimtab.attach(optimizer, spies[0], penalty, spies[1], centre, spies[2], score, spies[3], clip, spies[4], model=net)
    inputs, labels = data()[0]
    scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
    for x, y in zip(inputs.chunk(2), labels.chunk(2), strict=True):
        scaler.scale(nn.functional.cross_entropy(net(x), y) / 2).backward()
    before = weights(net)
    scaler.step(optimizer)

    by_hand = network()
    nn.functional.cross_entropy(by_hand(inputs), labels).backward()
    known = entries_of(by_hand)
    for spy, stage in zip(spies, [None, penalty, centre, score, clip], strict=True):
        if stage is not None:
            stage.before_step(known)
        torch.testing.assert_close(spy.seen, torch.cat([entry.parameter.grad.flatten() for entry in known]))
    torch.testing.assert_close(weights(net), before - 0.5 * spies[4].seen)
    assert float(spies[4].seen.norm()) == pytest.approx(0.3, rel=1e-4)
    # clipping first gives something else, so the order is really seen
    other = network()
    nn.functional.cross_entropy(other(inputs), labels).backward()
    for stage in (penalty, clip, centre, score):
        stage.before_step(entries_of(other))
    turned = torch.cat([parameter.grad.flatten() for parameter in other.parameters()])
    assert float((turned - spies[4].seen).abs().max()) > 0.1


def test_a_chain_is_its_members_one_after_another():
    members = (Centralize, Autoscale, lambda: ClipNorm(0.1), lambda: ClipNorm(0.05))
    separate = train(*(make() for make in members))
    chain = Chain(*(make() for make in members))
    assert torch.equal(train(chain), separate)
    assert set(chain.signals()) == {"alpha", "sigma", "norm", "factor", "ClipNorm3.norm", "ClipNorm3.factor"}
    assert float(chain.signals()["ClipNorm3.norm"]) == pytest.approx(0.1, rel=1e-3)
    assert repr(chain).startswith("Chain(Centralize(conv_only=False, min_ndim=2), Autoscale(")


def test_a_chain_saves_and_restores_its_members():
    chain = Chain(Autoscale("first"), trimtab.penalties.L1(0.1), ClipNorm(1.0))
    train(chain)
    state = copy.deepcopy(chain.state_dict())
    restored = Chain(Autoscale("first"), trimtab.penalties.L1(0.2), ClipNorm(1.0))
    restored.load_state_dict(state)
    assert restored.state_dict() == state
    assert state["transforms"][0]["state"]["steps"] == 4
    with pytest.raises(ValueError, match="same members in order"):
        Chain(ClipNorm(1.0), Autoscale("first")).load_state_dict(state)
    with pytest.raises(ValueError, match="at least one"):
        Chain()
    with pytest.raises(TypeError, match="item 1 of Chain"):
        Chain(Autoscale(), ClipNorm)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", TRANSFORMS)
def test_missing_gradients_are_skipped(name):
    net = network()
    transform = TRANSFORMS[name]()
    known = entries_of(net)
    transform.before_step(known)  # none has a gradient yet
    net[3].weight.grad = torch.randn_like(net[3].weight)
    transform.before_step(known)
    assert [entry.name for entry in known if entry.parameter.grad is not None] == ["3.weight"]


@pytest.mark.parametrize("name", of_home("transform"))
def test_what_would_be_refused_may_be_left_out_by_a_rule(name):
    table = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 2), nn.Linear(2, 2))
    table[2](table[1](table[0](torch.tensor([1, 2])))).sum().backward()
    before = table[0].weight.grad.clone()
    settings = {"max_norm": 1.0} if name == "clip_norm" else {}
    create(name, rule=Rule(exclude=("0.weight",)), **settings).before_step(entries_of(table))
    assert torch.equal(table[0].weight.grad.to_dense(), before.to_dense())


def test_a_parameter_frozen_between_steps_is_left_alone():
    net = nn.Linear(3, 2)
    known = entries_of(net)
    transform = Centralize()
    for frozen in (False, True, False):
        net.weight.requires_grad_(not frozen)
        net.weight.grad = gradient = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 3.0]])
        before = gradient.clone()
        transform.before_step(known)
        assert torch.equal(gradient, before) == frozen


def test_a_rule_by_name_and_without_names():
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with trimtab.attach(optimizer, Centralize(rule=Rule(include=("3.*",))), model=net):
        for parameter in net.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    changed = [
        name
        for name, parameter in net.named_parameters()
        if not torch.equal(parameter.grad, torch.ones_like(parameter))
    ]
    assert changed == ["3.weight"]
    with (
        trimtab.attach(optimizer, Centralize(rule=Rule(include=("3.*",)))),
        pytest.raises(ValueError, match="has no name"),
    ):
        optimizer.step()

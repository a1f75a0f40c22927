"""Every measure leaves the network as it found it, also when it is interrupted."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from tests.observe.curvature.networks import CROSS_ENTROPY, labels
from trimtab.observe.curvature import (
    GaussNewton,
    Hessian,
    Objective,
    relative,
    sharpness,
    spectral_density,
    top_eigenvalues,
    trace,
)
from trimtab.observe.landscape import eigenvector_directions, random_directions, section

MEASURES: dict[str, Callable[[Objective], Any]] = {
    "loss": lambda o: o.loss(),
    "gradient": lambda o: o.gradient(),
    "eigenvalues": lambda o: top_eigenvalues(Hessian(o), 2, max_products=4, vectors=True),
    "gauss-newton": lambda o: top_eigenvalues(GaussNewton(o), max_products=3),
    "relative": lambda o: top_eigenvalues(relative(Hessian(o)), max_products=3),
    "trace": lambda o: trace(Hessian(o), 9),
    "density": lambda o: spectral_density(Hessian(o), 2, 3),
    "sharpness": lambda o: sharpness(o, steps=2),
    "line": lambda o: section(o, random_directions(o, 1), points=5, at_once=2),
    "plane": lambda o: section(
        o, eigenvector_directions(o, top_eigenvalues(Hessian(o), 2, max_products=3, vectors=True)), points=3, at_once=1
    ),
}


class Careless(nn.Module):
    """A forward that draws random numbers, counts in a buffer and caches a tensor; fails on the n-th call."""

    def __init__(self, error: BaseException | None = None, call: int = 0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
        self.dropout = nn.Dropout()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.error, self.call, self.made = error, call, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.made += 1
        if torch.is_grad_enabled() and not self.calls.is_meta:
            self.calls += 1
            self.cache = self.layers[4].weight * 2
        if self.error is not None and self.made >= self.call:
            raise self.error
        return self.dropout(self.layers(inputs)) + 0.1 * nn.functional.dropout(torch.ones(3, device=inputs.device), 0.5)


def prepared(error: BaseException | None = None, call: int = 0) -> tuple[Careless, Tensor]:
    torch.manual_seed(0)
    net, inputs = Careless(), torch.randn(6, 1, 6, 6)
    prune.l1_unstructured(net.layers[4], "weight", 0.5)
    net(inputs)
    CROSS_ENTROPY(net(inputs), labels(6)).backward()
    net.layers[1].eval()
    net.layers[0].bias.grad = None
    net.error, net.call, net.made = error, call, 0
    return net, inputs


def state(net: Careless) -> tuple[Any, ...]:
    tensors = {name: (id(t), t.detach().clone()) for name, t in (*net.named_parameters(), *net.named_buffers())}
    gradients = {n: None if p.grad is None else (id(p.grad), p.grad.clone()) for n, p in net.named_parameters()}
    loose = {
        (name, key): id(value)
        for name, module in net.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    }
    modes = {name: (m.training, getattr(m, "track_running_stats", None)) for name, m in net.named_modules()}
    return tensors, gradients, loose, modes, torch.get_rng_state()


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("policy", ["frozen", "batch"])
@pytest.mark.parametrize("name", MEASURES)
def test_nothing_changes(name: str, policy: str) -> None:
    net, inputs = prepared()
    before = state(net)
    batches = [(inputs[:4], labels(4)), (inputs[4:], labels(2))]
    for data in ((inputs, labels(6)), batches):
        MEASURES[name](Objective(net, CROSS_ENTROPY, data, batch_norm=policy))
        assert same(before, state(net))
    assert net.made > 0


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("broken")])
@pytest.mark.parametrize("name", MEASURES)
def test_nothing_changes_when_interrupted(name: str, error: BaseException) -> None:
    for call in (1, 3):
        net, inputs = prepared(error, call)
        before = state(net)
        batches = [(inputs[:4], labels(4)), (inputs[4:], labels(2))] * 2
        with pytest.raises(type(error)):
            MEASURES[name](Objective(net, CROSS_ENTROPY, batches, batch_norm="batch"))
        assert same(before, state(net))


def test_an_interrupt_while_parameters_are_exchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C may strike inside `functional_call` itself, before it is ready to put anything back."""
    from torch.nn.utils._named_member_accessor import NamedMemberAccessor

    net, inputs = prepared()
    before = state(net)
    swap, made = NamedMemberAccessor.swap_tensor, []

    def interrupted(self: Any, *arguments: Any, **keywords: Any) -> Any:
        made.append(1)
        if len(made) == 3:
            raise KeyboardInterrupt
        return swap(self, *arguments, **keywords)

    monkeypatch.setattr(NamedMemberAccessor, "swap_tensor", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Objective(net, CROSS_ENTROPY, (inputs, labels(6))).loss()
    monkeypatch.undo()
    assert len(made) >= 3
    assert same(before, state(net))


def test_every_pass_draws_the_same_random_numbers() -> None:
    net, inputs = prepared()
    objective = Objective(net, CROSS_ENTROPY, [(inputs[:3], labels(3)), (inputs[3:], labels(3))])
    first = objective.loss()
    torch.rand(5)
    assert objective.loss() == first
    assert sharpness(objective).loss == first


def test_a_copy_can_be_made_of_the_model_afterwards() -> None:
    net, inputs = prepared()
    del net.cache
    sharpness(Objective(net, CROSS_ENTROPY, (inputs, labels(6))))
    with torch.no_grad():
        net.layers(inputs)
    assert copy.deepcopy(net.layers[0]).weight.equal(net.layers[0].weight)

"""Tensors that start at zero or at one value: named, and the attached penalty bounded by the task's gradient."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

import trimtab
from trimtab.penalties import L1, HoyerSquare, VarianceAmplifier
from trimtab.penalties import magnitude_pass as moments_module
from trimtab.penalties.variance_amplifier import Form

NAMED = r"magnitudes of up\.weight start .*bound=10 times"


class Adapter(nn.Module):
    """A linear layer of low rank whose second factor starts at zero, as LoRA's does."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(16, 4, bias=False), nn.Linear(4, 16, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(64, 16, generator=generator), torch.randn(64, 16, generator=generator)


def adapter() -> Adapter:
    torch.manual_seed(0)
    return Adapter()


def steps(net: nn.Module, optimizer: torch.optim.Optimizer, number: int, parts: int = 1) -> list[float]:
    dtype = next(net.parameters()).dtype
    inputs, targets = (part.to(dtype) for part in data())
    losses = []
    for _ in range(number):
        optimizer.zero_grad()
        total = 0.0
        for x, y in zip(inputs.chunk(parts), targets.chunk(parts), strict=True):
            loss = (net(x) - y).square().mean() / parts
            loss.backward()
            total += loss.item()
        optimizer.step()
        losses.append(total)
    return losses


@pytest.mark.parametrize("form", ["variance", "relative", "as_printed"])
@pytest.mark.parametrize("start", ["zeros", "one value", "tiny"])
def test_the_gradient_is_at_most_the_bound_times_the_tasks(start: str, form: Form) -> None:
    weight = nn.Parameter(torch.full((8, 4), 1e-3 if start == "one value" else 0.0))
    with torch.no_grad():
        if start == "tiny":
            weight.normal_(std=1e-4, generator=torch.Generator().manual_seed(0))
    penalty = VarianceAmplifier(1e-3, form, bound=3.0)
    with pytest.warns(UserWarning, match="bound=3 times"):
        trimtab.attach(torch.optim.SGD([weight], lr=0.1), penalty)
    with torch.no_grad():  # one step later
        weight += 1e-5 * torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    task = 1e-3 * torch.randn(8, 4, generator=torch.Generator().manual_seed(2))
    free = VarianceAmplifier(1e-3, form, bound=None)
    weight.grad = torch.zeros_like(weight)
    free.add_gradient_([weight])
    unbounded = weight.grad
    weight.grad = task.clone()
    penalty.before_step(trimtab.parameters.entries([weight]))
    added = weight.grad - task
    assert float(added.norm()) <= 3.0 * float(task.norm()) * (1 + 1e-5)
    if float(unbounded.norm()) > 3.0 * float(task.norm()):
        assert float(added.norm()) > 0
    direction = nn.functional.cosine_similarity(added.flatten().double(), unbounded.flatten().double(), 0)
    assert float(direction) == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize("make", [lambda p: torch.optim.SGD(p, lr=0.05), lambda p: torch.optim.AdamW(p, lr=1e-3)])
def test_an_adapter_trains_on(make) -> None:
    net = adapter()
    optimizer = make(net.parameters())
    with pytest.warns(UserWarning, match=NAMED):
        trimtab.attach(optimizer, VarianceAmplifier(), model=net)
    losses = steps(net, optimizer, 20)
    assert max(losses) <= 1.05 * losses[0]


def test_ordinary_networks_are_bit_equal_with_and_without() -> None:
    found = []
    for bound in (None, 1e-9):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 16))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            penalty = VarianceAmplifier(bound=bound)
            trimtab.attach(optimizer, penalty, model=net)
        assert penalty.bounded == set()
        steps(net, optimizer, 5)
        found.append([parameter.detach().clone() for parameter in net.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:.*start .almost. all equal")
def test_accumulated_steps_are_those_of_the_whole_batch() -> None:
    found = []
    for parts in (1, 4):
        net = adapter().double()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
        trimtab.attach(optimizer, VarianceAmplifier(), model=net)
        steps(net, optimizer, 6, parts)
        found.append(net.up.weight.detach())
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-14)


@pytest.mark.filterwarnings("ignore:.*start .almost. all equal")
def test_a_resumed_run_bounds_the_same_tensors() -> None:
    def attached(net: nn.Module) -> tuple[torch.optim.Optimizer, trimtab.levers.Handle]:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.5)
        return optimizer, trimtab.attach(optimizer, VarianceAmplifier(1e-3), model=net)

    whole = adapter()
    optimizer, _ = attached(whole)
    steps(whole, optimizer, 8)
    first = adapter()
    optimizer, handle = attached(first)
    steps(first, optimizer, 4)
    saved = handle.state_dict()
    assert saved["levers"][0]["state"]["bounded"] == ["up.weight"]
    second = adapter()
    second.load_state_dict(first.state_dict())
    optimizer, handle = attached(second)
    handle.load_state_dict(saved)
    steps(second, optimizer, 4)
    assert torch.equal(second.up.weight, whole.up.weight)


def test_bound_is_checked() -> None:
    for bound in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="bound must be"):
            VarianceAmplifier(bound=bound)


@pytest.mark.parametrize("bag", [False, True])
def test_l1_of_a_sparse_gradient_acts_on_the_rows_it_holds(bag: bool) -> None:
    torch.manual_seed(0)
    layer = (nn.EmbeddingBag if bag else nn.Embedding)(6, 3, sparse=True)
    places = torch.tensor([[4, 1], [4, 4]])
    layer(places).square().sum().backward()
    assert layer.weight.grad is not None
    expected = layer.weight.grad.to_dense()
    expected[[1, 4]] += 0.5 * layer.weight.detach()[[1, 4]].sign()
    before = layer.weight.detach().clone()
    optimizer = torch.optim.SparseAdam(layer.parameters(), lr=0.1)
    trimtab.attach(optimizer, L1(0.5), model=layer)
    optimizer.step()
    assert layer.weight.grad.is_sparse
    torch.testing.assert_close(layer.weight.grad.to_dense(), expected)
    assert (layer.weight != before).any(1).tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("make", [VarianceAmplifier, HoyerSquare])
def test_other_penalties_name_what_is_sparse(make) -> None:
    net = nn.Sequential(nn.Embedding(6, 3, sparse=True), nn.Linear(3, 2))
    net(torch.tensor([4, 1])).sum().backward()
    with pytest.raises(TypeError, match=r"dense gradients, that of 0\.weight has layout torch\.sparse_coo.*exclude"):
        make(1e-5).add_gradient_(net)


@pytest.mark.parametrize("high", [0.1, 0.37, 1.7])
@pytest.mark.parametrize("size", [100, 40_000, 2_000_001])
def test_variance_of_two_magnitudes(size: int, high: float) -> None:
    """Sign-like weights: float32 sums over all of them would round every addition the same way."""
    share = torch.rand(size, generator=torch.Generator().manual_seed(size))
    weight = torch.where(share > 0.3, high, -0.5 * high).view(1, -1)
    found = moments_module.MagnitudePass([weight], 0.0).moments()
    exact = weight.double().abs()
    assert found.variance.item() == pytest.approx(exact.var(correction=0).item(), rel=1e-6)
    assert found.mean.item() == pytest.approx(exact.mean().item(), rel=1e-6)


def test_the_parts_of_a_computed_weight_are_not_named() -> None:
    net = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))  # its gains may well be all equal
    with torch.no_grad():
        net.parametrizations.weight.original0.fill_(1.0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        penalty = VarianceAmplifier()
        trimtab.attach(optimizer, penalty, model=net)
    assert penalty.bounded == set()


def test_a_state_of_before_there_was_a_bound_loads() -> None:
    penalty = VarianceAmplifier(strength=1e-4)
    old = {name: value for name, value in penalty.state_dict().items() if name not in {"bound", "bounded"}}
    other = VarianceAmplifier(strength=1.0)
    other.load_state_dict(old)
    assert (other.strength, other.bound) == (1e-4, 10.0)
    with pytest.raises(ValueError, match="does not fit"):
        VarianceAmplifier(bound=3.0).load_state_dict(penalty.state_dict())

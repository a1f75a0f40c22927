"""on_nonfinite: what a handle does about inf and NaN."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import trimtab
from tests.distributed import on_two_ranks
from trimtab.gradients import Autoscale, ClipNorm
from trimtab.levers import any_nonfinite
from trimtab.observe import GradientTracker
from trimtab.penalties import L1

OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    "fused AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "fused SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adam, foreach": lambda p: torch.optim.Adam(p, lr=0.1, foreach=True),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "Adadelta": lambda p: torch.optim.Adadelta(p),
    "ASGD": lambda p: torch.optim.ASGD(p),
    "NAdam": lambda p: torch.optim.NAdam(p),
    "Rprop": lambda p: torch.optim.Rprop(p),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def backward(net: nn.Module, seed: int, bad: float | None = None) -> Tensor:
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    loss = net(inputs).square().mean()
    loss.backward()
    if bad is not None:
        net[0].weight.grad[0, 0] = bad  # type: ignore[index, union-attr]
    return loss


def state_of(net: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    found = [parameter.detach().clone() for parameter in net.parameters()]
    for state in optimizer.state.values():
        found += [torch.as_tensor(value).clone() for value in state.values() if value is not None]
    return found


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_skipped_is_as_if_the_step_had_not_been(name: str, bad: float) -> None:
    runs = []
    for poisoned in (True, False):
        net = network()
        optimizer = OPTIMIZERS[name](net.parameters())
        levers = [L1(0.1), Autoscale("running_max"), ClipNorm(0.05)]
        handle = trimtab.attach(optimizer, *levers, model=net, on_nonfinite="skip")
        for seed in range(4):
            if poisoned and seed == 2:
                optimizer.zero_grad()
                backward(net, 99, bad)
                came = net[0].weight.grad.clone()
                with pytest.warns(UserWarning, match=r"inf or NaN: 0\.weight \(1 of 32 entries\); the optimizer skips"):
                    optimizer.step()
                assert torch.equal(net[0].weight.grad.nan_to_num(7), came.nan_to_num(7))  # as it came, after the step
                assert handle.skipped == handle.skipped_in_a_row == 1
            optimizer.zero_grad()
            backward(net, seed)
            optimizer.step()
        assert handle.skipped_in_a_row == 0
        runs.append((state_of(net, optimizer), levers[1].state_dict()))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=0, atol=0)
    assert runs[0][1] == runs[1][1]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("closure", [False, True])
def test_no_state_of_any_optimizer_moves(name: str, closure: bool) -> None:
    net = network()
    optimizer = OPTIMIZERS[name](net.parameters())
    trimtab.attach(optimizer, on_nonfinite="skip")
    backward(net, 0)
    optimizer.step()
    before = state_of(net, optimizer)

    def evaluate() -> Tensor:
        optimizer.zero_grad()
        return backward(net, 1, float("inf"))

    if not closure:
        evaluate()
    with pytest.warns(UserWarning, match="skips"):
        optimizer.step(*[evaluate][:closure])
    torch.testing.assert_close(state_of(net, optimizer), before, rtol=0, atol=0)


@pytest.mark.parametrize("own_handle", [True, False])
def test_a_tracker_sees_what_came(own_handle: bool) -> None:
    net, tracker = network(), GradientTracker(("gradients", "updates"))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if own_handle:
        trimtab.attach(optimizer, tracker, model=net)
        trimtab.attach(optimizer, L1(0.1), model=net, on_nonfinite="skip")
    else:
        trimtab.attach(optimizer, tracker, L1(0.1), model=net, on_nonfinite="skip")
    for seed, bad in enumerate([None, float("nan"), None]):
        optimizer.zero_grad()
        backward(net, seed, bad)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            optimizer.step()
    rows = [row for row in tracker.table().to_pylist() if row["layer"] == "0.weight"]
    assert [(row["step"], row["kind"]) for row in rows if row["kind"] == "gradients"] == [
        (step, "gradients") for step in range(3)
    ]
    assert [row["nan"] for row in rows if row["kind"] == "gradients"] == [0, 1, 0]
    assert [row["norm"] == 0 for row in rows if row["kind"] == "updates"] == [False, True, False]


def test_pass_warns_once_and_hands_on() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, ClipNorm(1.0), model=net)
    backward(net, 0, float("nan"))
    with pytest.warns(UserWarning, match=r"0\.weight \(1 of 32 entries\); levers pass them on"):
        optimizer.step()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert net[0].weight.isnan().sum() == 1


def test_raise_leaves_the_weights() -> None:
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    trimtab.attach(optimizer, L1(0.1), model=net, on_nonfinite="raise")
    backward(net, 0, float("inf"))
    before = [parameter.detach().clone() for parameter in net.parameters()]
    with pytest.raises(FloatingPointError, match=r"before the step: 0\.weight \(1 of 32 entries\)"):
        optimizer.step()
    torch.testing.assert_close([*net.parameters()], before, rtol=0, atol=0)
    assert not optimizer.state


def test_finite_gradients_whose_norm_overflows_are_finite() -> None:
    weight = nn.Parameter(torch.zeros(100))
    weight.grad = torch.full((100,), 3e38)
    assert not any_nonfinite([weight])
    weight.grad[3] = float("-inf")
    assert any_nonfinite([weight])
    weight.grad = torch.full((100,), 6e4, dtype=torch.float32)
    half = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    half.grad = torch.full((100,), 6e4, dtype=torch.float16)
    assert not any_nonfinite([weight, half])
    sparse = nn.Embedding(5, 2, sparse=True)
    sparse(torch.tensor([1, 1])).sum().backward()
    assert not any_nonfinite([*sparse.parameters()])
    (sparse(torch.tensor([1, 1])) * float("inf")).sum().backward()
    assert any_nonfinite([*sparse.parameters()])
    assert not any_nonfinite([nn.Parameter(torch.zeros(0)), nn.Parameter(torch.zeros(3))])


def test_what_cannot_be() -> None:
    net = network()
    with pytest.raises(ValueError, match="on_nonfinite must be one of 'pass', 'skip', 'raise', got 'ignore'"):
        trimtab.attach(torch.optim.SGD(net.parameters()), on_nonfinite="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot undo a step of LBFGS"):
        trimtab.attach(torch.optim.LBFGS(net.parameters()), on_nonfinite="skip")


def test_the_count_travels_with_the_state() -> None:
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = trimtab.attach(optimizer, on_nonfinite="skip")
    backward(net, 0, float("inf"))
    with pytest.warns(UserWarning, match="skips"):
        optimizer.step()
    other = trimtab.attach(torch.optim.SGD(network().parameters()), on_nonfinite="skip")
    other.load_state_dict(copy.deepcopy(handle.state_dict()))
    assert other.skipped == 1


def decide(rank: int, world: int) -> dict[str, Any]:
    """A NaN on rank 1 alone, without a reduction between the ranks."""
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    handle = trimtab.attach(optimizer, on_nonfinite="skip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for bad in (False, True, False):
            weight.grad = torch.ones(3)
            weight.grad[0] = float("nan") if bad and rank == 1 else 1.0
            optimizer.step()
    return {"weight": weight.detach().clone(), "skipped": handle.skipped}


def test_every_rank_decides_alike() -> None:
    for found in on_two_ranks(decide):
        assert found["skipped"] == 1
        torch.testing.assert_close(found["weight"], torch.full((3,), 0.8))

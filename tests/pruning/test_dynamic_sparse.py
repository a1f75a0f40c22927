"""RigL and SET: written-down numbers, counts that stay, growth at random, what is refused."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

from tests.pruning.along import attached, resumed, same, sgd, steps
from tests.pruning.nets import Small
from tests.pruning.waves import wave
from trimtab.parameters import Rule
from trimtab.pruning import DynamicSparse, erk_densities


def lever(**settings: Any) -> DynamicSparse:
    return DynamicSparse(**{"sparsity": 0.8, "every": 2, "total_steps": 20, **settings})


def test_one_move_is_the_written_down_one() -> None:
    net = nn.Linear(4, 4, bias=False, dtype=torch.float64)
    kept = wave((4, 4), 5) > 0
    moving = lever(distribution="uniform", first_layer="sparse")
    optimizer, _ = attached(net, moving)
    net.weight.data = wave((4, 4), 1) * kept
    moving._gone["weight"] = ~kept
    (entry,) = moving._chosen(moving._entries)
    net.weight.grad = wave((4, 4), 7)
    optimizer.step()  # momentum and the step are not what is compared
    net.weight.data = wave((4, 4), 1) * kept
    moving._gradients = {"weight": wave((4, 4), 7).abs()}
    moving._move(entry, 0.5, torch.Generator())
    assert moving.masks["weight"].int().tolist() == [[0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]]
    expected = torch.zeros(4, 4, dtype=torch.float64)
    expected[0, 2:] = torch.tensor([-0.5522530678, -1.180259989], dtype=torch.float64)
    expected[3, :3] = torch.tensor([-0.8793463787, -0.5658271704, -0.100881121], dtype=torch.float64)
    torch.testing.assert_close(net.weight.detach(), expected, rtol=0, atol=1e-8)


def test_the_fraction_falls_by_a_cosine_to_the_stop() -> None:
    moving = lever(stop=1.0, total_steps=100)
    found = [moving.fraction_at(t) for t in (0, 25, 50, 75, 100)]
    assert found == pytest.approx([0.3, 0.2560660172, 0.15, 0.04393398282, 0.0])
    assert not moving._moves_after(100)


def test_densities_at_the_start_are_those_of_the_rule() -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 128, 3), nn.Linear(128, 10))
    moving = lever(sparsity=0.9)
    attached(net, moving)
    shares = [float(mask.float().mean()) for mask in moving.masks.values()]
    assert shares == pytest.approx([0.0914439006, 0.0675592997], abs=1e-4)  # the whole ones have no mask of zeros
    shapes = [tuple(net[at].weight.shape) for at in range(4)]
    assert erk_densities(shapes, 0.1) == pytest.approx([1.0, 0.0914439006, 0.0675592997, 1.0])


@pytest.mark.parametrize("grow", ["gradient", "random"])
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_as_many_come_as_go_in_every_tensor_and_masks_move_until_the_stop(grow: str, distribution: str) -> None:
    net = Small()
    moving = lever(grow=grow, distribution=distribution)
    optimizer, _ = attached(net, moving, sgd(net))
    seen = [moving.masks]
    steps(net, optimizer, range(20), lambda: seen.append(moving.masks))
    counts = [{name: int(mask.sum()) for name, mask in masks.items()} for masks in seen]
    assert all(count == counts[0] for count in counts)
    moved = [any(not torch.equal(a[name], b[name]) for name in a) for a, b in itertools.pairwise(seen)]
    after = {at + 1 for at, yes in enumerate(moved) if yes}
    assert {2, 4, 6, 8, 10, 12} <= after <= {2, 4, 6, 8, 10, 12, 14}  # the fraction is too small in the end
    for name, mask in moving.masks.items():
        weight = net.get_parameter(name)
        assert bool((weight[~mask] == 0).all())
        buffer = optimizer.state[weight]["momentum_buffer"]
        assert bool((buffer[~mask] == 0).all())
    total = sum(mask.numel() for mask in moving.masks.values())
    assert sum(counts[0].values()) == total - int(0.8 * total + 0.5)
    assert ("conv.weight" in moving.masks) == (distribution == "erk")


def test_what_comes_back_begins_at_zero_without_memory() -> None:
    net = nn.Linear(20, 5, bias=False)
    moving = lever(every=3, sparsity=0.5)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    attached(net, moving, optimizer)
    for step in range(3):
        before = moving.masks["weight"]
        optimizer.zero_grad()
        (net(torch.randn(4, 20, generator=torch.Generator().manual_seed(step))) ** 2).sum().backward()
        optimizer.step()
    come = moving.masks["weight"] & ~before
    assert int(come.sum()) > 0
    assert bool((net.weight[come] == 0).all())
    assert bool((optimizer.state[net.weight]["exp_avg_sq"][come] == 0).all())


def test_random_masks_follow_the_seed_and_are_not_the_smallest_weights() -> None:
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(5)
        net = nn.Linear(30, 30)
        moving = lever(seed=seed, sparsity=0.5)
        attached(net, moving)
        found.append(moving.masks["weight"])
        smallest = net.weight[moving.masks["weight"]].abs().min()
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert smallest < 0.02, "a small weight is among the kept ones"


def test_a_run_that_stopped_between_two_moves_goes_on_as_if_it_had_not() -> None:
    for grow in ("gradient", "random"):
        (one, _), (other, _) = resumed(Small, lambda grow=grow: lever(grow=grow), 5, 12)  # type: ignore[misc]
        assert same(one, other)


def test_computed_weights_are_left_out_with_the_reason() -> None:
    net = Small()
    nn.utils.parametrizations.weight_norm(net.conv)
    moving = lever()
    attached(net, moving)
    reasons = {entry.name: reason for entry, reason in moving.left_out}
    assert "no gradient of its own" in reasons["conv.weight"]
    assert "conv.weight" not in moving.masks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \(0, 1\)"),
        ({"distribution": "global"}, "distribution must be one of 'erk', 'uniform'"),
        ({"grow": "largest"}, "grow must be one of"),
        ({"fraction": 0.0}, r"fraction must lie in \(0, 1\]"),
        ({"stop": 1.5}, r"stop must lie in \(0, 1\]"),
        ({"every": 0}, "every must be"),
        ({"start": "dense"}, "start must be one of"),
        ({"first_layer": "thin"}, "first_layer must be one of"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lever(**settings)


def test_the_first_layer_alone_is_nothing_to_prune() -> None:
    net = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="beside the first layer weight"):
        attached(net, lever(distribution="uniform"))
    with pytest.raises(ValueError, match="finds nothing to prune"):
        attached(net, lever(rule=Rule(include=("none",))))

"""Trained rank pruning and decomposition: written-down projections, the nuclear norm's gradient, two layers equal to one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import trimtab
from tests.distributed import on_two_ranks
from tests.pruning.along import attached, resumed, same, steps
from tests.pruning.nets import Small, Tied, bits
from tests.pruning.waves import wave
from trimtab.pruning import LowRankProjection, decompose
from trimtab.pruning.low_rank import as_matrix, from_matrix, truncated


def lever(**settings: Any) -> LowRankProjection:
    return LowRankProjection(**{"energy": 0.9, "every": 2, "first_layer": "low_rank", **settings})


@pytest.mark.parametrize(
    ("scheme", "weight", "pull"),
    [
        ("channel", [-0.2752035985, -0.6323768267, 0.3153717337, 0.5356951774], [-0.1601533218, -0.3703945873]),
        ("spatial", [-0.3567553943, -0.5919840219, -0.02407393463, 0.8006341383], [-0.2171673929, -0.322346154]),
    ],
)
def test_projections_are_the_written_down_ones(scheme: Any, weight: list[float], pull: list[float]) -> None:
    layer = nn.Conv2d(2, 3, 2, bias=False, dtype=torch.float64)
    layer.weight.data = wave((3, 2, 2, 2), 5)
    projecting = lever(scheme=scheme, every=1, nuclear=0.5)
    optimizer, _ = attached(layer, projecting, torch.optim.SGD(layer.parameters(), lr=0.0))
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    assert projecting.ranks == {"weight": 2}
    assert layer.weight.detach().flatten()[:4].tolist() == pytest.approx(weight, abs=1e-8)
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    assert layer.weight.grad.flatten()[:2].tolist() == pytest.approx([0.5 * one for one in pull], abs=1e-8)


def test_at_full_rank_the_pull_is_the_gradient_of_the_nuclear_norm() -> None:
    weight = wave((4, 6), 3).requires_grad_()
    torch.linalg.matrix_norm(weight, "nuc").backward()
    left, _, right = truncated(weight.detach(), 1.0)
    torch.testing.assert_close(left @ right, weight.grad)
    for scheme in ("channel", "spatial", "depthwise"):
        for axis in (0, 1):
            four = wave((3, 5, 2, 4), 1)
            assert torch.equal(from_matrix(as_matrix(four, scheme, axis), four, scheme, axis), four)


def test_training_ends_at_low_rank_and_goes_on_after_a_stop() -> None:
    (one, handle), (other, _) = resumed(Small, lever, 3, 7)
    assert same(one, other)
    assert handle.finish(), "the last step was no projection"
    ranks = handle.levers[0].ranks
    assert int(torch.linalg.matrix_rank(one.head.weight)) == ranks["head.weight"]
    whole = LowRankProjection(every=1)
    net = Small()
    optimizer, handle = attached(net, whole)
    steps(net, optimizer, range(2))
    assert not handle.finish()
    assert {entry.name: why for entry, why in whole.left_out}["conv.weight"].startswith("first layer")
    assert set(whole.describe()) == {"rank"}


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 20, (3, 5), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
        self.one = nn.Conv1d(20, 16, 3, padding="same")
        self.grouped = nn.Conv1d(16, 16, 3, groups=4)
        self.fc = nn.Linear(16, 12, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.one(torch.relu(self.conv(x)).mean(2))
        return self.fc(self.grouped(x).mean(2))


def test_each_output_has_a_rank_of_its_own() -> None:
    layer = nn.Conv2d(5, 3, 2, bias=False, dtype=torch.float64)
    layer.weight.data = wave((3, 5, 2, 2), 2)
    layer.weight.data[1] = wave((5, 1, 1), 3) * wave((1, 2, 2), 4)  # of rank 1
    before = layer.weight.detach().clone()
    projecting = lever(scheme="depthwise", every=1, nuclear=0.5)
    optimizer, _ = attached(layer, projecting, torch.optim.SGD(layer.parameters(), lr=0.0))
    found = [truncated(filter_.flatten(1), 0.9) for filter_ in before]
    for _ in range(2):
        layer.weight.grad = torch.zeros_like(layer.weight)
        optimizer.step()
    for filter_, pull, (left, values, right) in zip(layer.weight, layer.weight.grad, found, strict=True):
        torch.testing.assert_close(filter_.flatten(1), (left * values) @ right)
        torch.testing.assert_close(pull.flatten(1), 0.5 * left @ right)
    ranks = [len(values) for _, values, _ in found]
    assert projecting.ranks == {"weight": max(ranks)}
    assert len(set(ranks)) > 1, "the outputs would have one rank"


def _one_step_of_each(rank: int, world: int) -> tuple[dict[str, int], torch.Tensor]:
    torch.manual_seed(rank)  # as if machines rounded otherwise, only more
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    projecting = lever(energy=0.7, every=1)
    optimizer, _ = attached(net, projecting, torch.optim.SGD(net.parameters(), lr=0.0))
    net(torch.ones(1, 6)).sum().backward()
    optimizer.step()
    return projecting.ranks, net[0].weight.detach()


def test_all_processes_take_the_projection_of_the_first() -> None:
    (ranks, weight), (others, other) = on_two_ranks(_one_step_of_each)
    assert ranks == others
    assert torch.equal(weight, other)


@pytest.mark.parametrize("scheme", ["channel", "spatial", "depthwise"])
def test_two_layers_compute_what_the_one_of_low_rank_did(scheme: Any) -> None:
    torch.manual_seed(0)
    net = Layers().double()
    for layer in (net.conv, net.one, net.fc):
        which = "channel" if scheme == "spatial" and layer is not net.conv else scheme
        left, values, right = torch.linalg.svd(as_matrix(layer.weight, which), full_matrices=False)
        low = (left[..., :2] * values[..., None, :2]) @ right[..., :2, :]
        layer.weight.data = from_matrix(low, layer.weight, which).contiguous()
    before = bits(net)
    made = decompose(net, 1.0, scheme)
    images = torch.randn(2, 6, 9, 12, dtype=torch.float64)
    torch.testing.assert_close(made.model(images), net(images))
    assert [row[:2] for row in made.rows] == [("conv", 2), ("one", 2), ("fc", 2)]
    assert dict(made.left_out)["grouped"] == "a convolution of 4 groups"
    assert bits(net) == before
    kernel = made.model.conv[0].kernel_size
    assert kernel == {"channel": (3, 5), "spatial": (3, 1), "depthwise": (1, 1)}[scheme]
    assert sum(row[4] for row in made.rows) < sum(row[3] for row in made.rows)
    made.model(images).sum().backward()


def test_what_would_not_be_smaller_is_tied_or_unknown_stays() -> None:
    with pytest.raises(ValueError, match=r"head: its weight is tied"):
        decompose(Tied())
    with pytest.raises(ValueError, match=r"no layer that two smaller ones could stand for .*two layers hold"):
        decompose(nn.Sequential(nn.Linear(4, 4)), 1.0)
    bad = nn.Sequential(nn.Linear(8, 8))
    bad[0].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"0\.weight holds NaN or infinite values in 1 of 64"):
        decompose(bad)
    with pytest.raises(ValueError, match="energy must lie"):
        decompose(bad, 0.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"energy": 1.5}, r"energy must lie in \(0, 1\]"),
        ({"every": 0}, "every must be"),
        ({"scheme": "rows"}, "scheme must be one of"),
        ({"nuclear": -1.0}, "nuclear must be"),
        ({"first_layer": "thin"}, "first_layer must be one of"),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lever(**settings)


def test_the_first_layer_alone_and_nan_are_named() -> None:
    with pytest.raises(ValueError, match="beside the first layer weight"):
        attached(nn.Linear(4, 4), LowRankProjection())
    net = nn.Linear(4, 4)
    optimizer, _ = attached(net, lever(every=1))
    net.weight.grad = torch.full_like(net.weight, torch.nan)
    with (
        pytest.warns(UserWarning, match="inf or NaN"),
        pytest.raises(ValueError, match="weight holds NaN after 1 steps"),
    ):
        optimizer.step()


def test_grouped_convolutions_stay_and_say_why() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 16, 1)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)
    lever = LowRankProjection(0.5, every=1)
    handle = trimtab.attach(optimizer, lever, model=net)
    before = [net[at].weight.detach().clone() for at in (1, 2)]
    net(torch.randn(2, 3, 8, 8)).square().sum().backward()
    optimizer.step()
    handle.finish()
    assert list(lever.ranks) == ["3.weight"]
    reasons = {entry.name: reason for entry, reason in lever.left_out}
    assert reasons["1.weight"].startswith("a convolution of 8 groups")
    assert reasons["2.weight"].startswith("a convolution of 2 groups")
    assert all(torch.equal(net[at].weight, weight) for at, weight in zip((1, 2), before, strict=True))
    alone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8))
    with pytest.raises(ValueError, match=r"no weight beside the first layer"):
        trimtab.attach(torch.optim.SGD(alone.parameters(), lr=0.1), LowRankProjection(), model=alone)


def test_weights_without_finite_values_are_not_decomposed() -> None:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = trimtab.attach(optimizer, LowRankProjection(0.5, every=1, first_layer="low_rank"), model=net)
    net[0].weight.data[0, 0] = float("inf")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"0\.weight holds infinite values after 1 steps"):
        optimizer.step()
    handle.remove()
    with pytest.raises(ValueError, match=r"0\.weight holds NaN or infinite values in 1 of 32 places"):
        decompose(net)
    with pytest.raises(ValueError, match="meta device"):
        decompose(net.to("meta"))

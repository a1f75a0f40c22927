"""AC/DC: the phases, what happens at their borders, exact counts, resume in every phase, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.pruning.along import attached, resumed, same, sgd, steps, zeros
from tests.pruning.nets import Small
from trimtab.pruning import ACDC, one_shot

WEIGHTS = ("conv.weight", "up.weight", "head.weight")
TOTAL = 288 + 192 + 30
SHORT = {"warm_up": 0.2, "phase": 0.1, "last_dense": 0.2, "last_sparse": 0.3, "total_steps": 20}
"""Sparse from 4, 8, dense from 6, 10, sparse from 14: 4 + 3 x 2 + 4 + 6."""


def lever(**settings: Any) -> ACDC:
    return ACDC(**{"sparsity": 0.8, **SHORT, **settings})


def test_the_defaults_are_the_papers_hundred_epochs() -> None:
    # 10 of warm-up, 5 + 5 in turn, the last dense phase 10, the last sparse one 15
    expected = [(epoch, "sparse" if epoch // 5 % 2 == 0 else "dense") for epoch in range(10, 75, 5)]
    assert ACDC(total_steps=100).starts == (*expected, (75, "dense"), (85, "sparse"))
    assert ACDC(total_steps=320).starts[-2:] == ((240, "dense"), (272, "sparse"))
    begins_sparse = ACDC(warm_up=0.0, phase=0.25, total_steps=100).starts
    assert begins_sparse == ((0, "sparse"), (25, "dense"), (50, "sparse"), (75, "dense"), (85, "sparse"))


def test_an_odd_number_of_equal_phases_is_nearest() -> None:
    assert ACDC(phase=0.4, total_steps=100).starts == ((10, "sparse"), (75, "dense"), (85, "sparse"))
    four = ACDC(phase=0.65 / 3.4, total_steps=300).starts
    assert four == ((30, "sparse"), (95, "dense"), (160, "sparse"), (225, "dense"), (255, "sparse"))


def test_sparse_phases_are_exactly_sparse_and_dense_ones_are_not() -> None:
    net = Small()
    optimizer, _ = attached(net, alternating := lever())
    found = []
    steps(net, optimizer, range(20), lambda: found.append((zeros(net, *WEIGHTS), alternating.sparsity_now)))
    gone = int(0.8 * TOTAL + 0.5)
    for step, (count, sparsity) in enumerate(found, 1):
        sparse = step in (4, 5, 8, 9) or step >= 14
        just_open = step in (6, 10)  # the step that ended the phase: zeros, free from now on
        assert count == gone if sparse or just_open else count < gone, step
        assert sparsity == (gone / TOTAL if sparse else 0.0), step


def test_weights_that_were_pruned_start_at_zero_and_without_momentum() -> None:
    net = Small()
    net.drop.p = 0.0
    optimizer, _ = attached(net, alternating := lever(), sgd(net, weight_decay=0.0))
    steps(net, optimizer, range(3))
    before = optimizer.state[net.norm.weight]["momentum_buffer"].clone()
    assert bool((before != 0).any())
    steps(net, optimizer, range(3, 4))  # a sparse phase begins
    for parameter in net.parameters():
        assert bool((optimizer.state[parameter]["momentum_buffer"] == 0).all())
    gone = ~alternating.masks["conv.weight"]
    steps(net, optimizer, range(4, 6))  # and ends
    assert not alternating.masks
    assert bool((net.conv.weight[gone] == 0).all())
    steps(net, optimizer, range(6, 7))
    assert net.conv.weight.grad is not None
    torch.testing.assert_close(net.conv.weight[gone], -0.05 * net.conv.weight.grad[gone])


def test_momentum_may_stay_and_adams_first_moment_is_momentum() -> None:
    net = Small()
    optimizer, _ = attached(net, lever(reset_momentum=False))
    steps(net, optimizer, range(4))
    assert bool((optimizer.state[net.norm.weight]["momentum_buffer"] != 0).any())
    net = Small()
    optimizer, _ = attached(net, lever(), torch.optim.Adam(net.parameters(), lr=0.01))
    steps(net, optimizer, range(4))
    assert bool((optimizer.state[net.norm.weight]["exp_avg"] == 0).all())
    assert bool((optimizer.state[net.norm.weight]["exp_avg_sq"] > 0).all())


def test_masks_are_chosen_over_all_tensors_at_the_start_of_each_phase() -> None:
    net = Small()
    optimizer, _ = attached(net, alternating := lever())
    steps(net, optimizer, range(13))
    weights = torch.cat([net.get_parameter(name).detach().flatten() for name in WEIGHTS])
    steps(net, optimizer, range(13, 14))
    layers = [float(mask.float().mean()) for mask in alternating.masks.values()]
    assert len(set(layers)) > 1  # not layer by layer
    layered = Small()
    optimizer, _ = attached(layered, lever(scope="layer"))
    steps(layered, optimizer, range(4))
    assert [zeros(layered, name) for name in WEIGHTS] == [230, 154, 24]
    assert weights.count_nonzero() == TOTAL


@pytest.mark.parametrize("at", [2, 4, 5, 7, 12, 15])
def test_resumed_in_any_phase_goes_on_bit_for_bit(at: int) -> None:
    (whole, _), (second, _) = resumed(Small, lever, at, 18)
    assert same(whole, second)


def test_a_run_that_ends_in_a_dense_phase_is_pruned_and_a_sparse_network_loses_nothing() -> None:
    net = Small()
    optimizer, handle = attached(net, lever())
    steps(net, optimizer, range(12))
    assert zeros(net, *WEIGHTS) == 0
    assert handle.finish() is True
    assert zeros(net, *WEIGHTS) == int(0.8 * TOTAL + 0.5)
    done = Small()
    optimizer, handle = attached(done, lever())
    steps(done, optimizer, range(20))
    assert handle.finish() is False
    before = {name: tensor.clone() for name, tensor in done.state_dict().items()}
    for sparsity in (0.5, 0.8):
        one_shot(done, sparsity)
        assert all(torch.equal(tensor, before[name]) for name, tensor in done.state_dict().items())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sparsity": 1.0}, r"sparsity must lie in \(0, 1\), got 1\.0"),
        ({"sparsity": 0.0}, r"sparsity must lie in \(0, 1\), got 0\.0"),
        ({"sparsity": -0.1}, r"sparsity must lie in \(0, 1\)"),
        ({"warm_up": 0.6}, r"must leave room for phases between them, got 0\.6 \+ 0\.2 \+ 0\.3"),
        ({"last_sparse": 0.0}, r"last_sparse must be finite and above 0"),
        (
            {"phase": 0.01},
            r"total_steps must give each of the 31 phases a step, got 20; make phase \(0\.01 of the run\) longer",
        ),
    ],
)
def test_bad_settings_are_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lever(**settings)

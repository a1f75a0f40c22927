"""Packing: nothing lost, nothing over the edge, near the fewest bins; batches of an epoch; bad input."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import RandomSampler, SequentialSampler

from trimtab.curricula import CurriculumSampler, Mixed, PackedBatches, pack

LENGTHS = st.lists(st.integers(0, 20), max_size=40)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(20, 40))
def test_every_row_is_in_one_bin_and_no_bin_overflows(lengths: list[int], capacity: int) -> None:
    bins = pack(lengths, capacity)
    assert sorted(row for one in bins for row in one) == list(range(len(lengths)))
    assert all(sum(lengths[row] for row in one) <= capacity for one in bins)
    assert (
        len(bins) <= 11 / 9 * max(math.ceil(sum(lengths) / capacity), 1) + 6 / 9
        or len(bins) <= _fewest(lengths, capacity) * 11 / 9 + 6 / 9
    )


def _fewest(lengths: list[int], capacity: int) -> int:
    """No two rows of more than half a bin fit together, so there are at least so many."""
    large = sum(length > capacity / 2 for length in lengths)
    return max(large, math.ceil(sum(lengths) / capacity))


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(20, 40))
def test_each_row_goes_where_least_stays_free(lengths: list[int], capacity: int) -> None:
    """Written out naively."""
    bins: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        free = [capacity - sum(lengths[other] for other in one) for one in bins]
        fitting = [(room, at) for at, room in enumerate(free) if room >= lengths[row]]
        if fitting:
            bins[min(fitting)[1]].append(row)
        else:
            bins.append([row])
    assert pack(lengths, capacity) == bins


def test_batches_of_an_epoch_are_those_of_its_sampler_in_another_order_each_time() -> None:
    lengths = [3, 6, 7, 4, 5, 5, 2, 8, 1, 9]
    batches = PackedBatches(SequentialSampler(range(10)), lengths, capacity=10, seed=2)
    epochs = [list(batches) for _ in range(3)]
    assert all(sorted(itertools.chain(*epoch)) == list(range(10)) for epoch in epochs)
    assert all(len(epoch) == 5 for epoch in epochs)  # 50 in all: every batch is full
    assert epochs[0] != epochs[1]
    again = PackedBatches(SequentialSampler(range(10)), lengths, capacity=10, seed=2)
    assert list(again) == epochs[0]


def test_a_curriculum_may_be_packed() -> None:
    stages = ["easy"] * 6 + ["hard"] * 6
    sampler = CurriculumSampler(stages, Mixed(), length=8)
    found = list(PackedBatches(sampler, range(1, 13), capacity=24))
    assert sum(map(len, found)) == 8


def test_batches_know_their_number_before_and_in_an_epoch() -> None:
    lengths = [3, 6, 7, 4, 5, 5, 2, 8, 1, 9]
    batches = PackedBatches(RandomSampler(lengths, generator=torch.Generator().manual_seed(1)), lengths, capacity=10)
    assert len(batches) == 5
    assert len(list(batches)) == 5
    assert batches.epoch == 1


@pytest.mark.parametrize("stop", [0, 1, 3, 5])
@pytest.mark.parametrize("kind", ["random", "curriculum"])
def test_a_run_that_was_stopped_goes_on_with_the_very_batches_that_were_left(stop: int, kind: str) -> None:
    lengths = list(range(1, 13))

    def made(seed: int) -> PackedBatches:
        if kind == "random":
            inner = RandomSampler(lengths, generator=torch.Generator().manual_seed(seed))
        else:
            inner = CurriculumSampler(["easy"] * 6 + ["hard"] * 6, Mixed(), seed=4)
        return PackedBatches(inner, lengths, capacity=13, seed=3)

    whole = made(1)
    expected = list(whole)
    stopped = made(1)
    running = iter(stopped)
    first = [next(running) for _ in range(stop)]
    state = json.loads(json.dumps(stopped.state_dict()))
    again = made(2)
    again.load_state_dict(state)
    again.set_epoch(0)  # as trainers do
    if stop or kind == "curriculum":
        assert first + list(again) == expected
        assert again.epoch == 1
    if kind == "curriculum":  # the next epoch is the same too
        assert list(again) == list(whole)


def test_what_was_fetched_ahead_and_not_trained_on_comes_again() -> None:
    lengths = [5] * 8
    stopped = PackedBatches(SequentialSampler(lengths), lengths, capacity=10)
    running = iter(stopped)
    handed = [next(running) for _ in range(3)]
    again = PackedBatches(SequentialSampler(lengths), lengths, capacity=10)
    again.load_state_dict(stopped.state_dict(consumed=1))
    assert next(iter(again)) == handed[1]


def test_another_epoch_may_be_set_and_one_left_off_is_not_taken_up() -> None:
    lengths = [5] * 8
    batches = PackedBatches(SequentialSampler(lengths), lengths, capacity=10)
    epochs = [list(batches) for _ in range(3)]
    batches.set_epoch(1)
    assert list(batches) == epochs[1]
    batches.set_epoch(0)
    next(iter(batches))
    assert list(batches) == epochs[1]


def test_ranks_share_the_batches_and_have_as_many() -> None:
    lengths = [5] * 10
    ranks = [PackedBatches(SequentialSampler(lengths), lengths, capacity=10, rank=rank, world=2) for rank in range(2)]
    first, second = (list(one) for one in ranks)
    assert len(first) == len(second) == 3 == len(ranks[0])
    assert {row for one in first + second for row in one} == set(range(10))


def test_a_state_of_other_batches_is_refused() -> None:
    batches = PackedBatches(SequentialSampler(range(3)), [1, 1, 1], 10)
    state = batches.state_dict()
    with pytest.raises(ValueError, match="the state has seed 0 and capacity 10, these batches 1 and 10"):
        PackedBatches(SequentialSampler(range(3)), [1, 1, 1], 10, seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"a drawn row must be a whole number in 0\.\.1, got 2"):
        PackedBatches(SequentialSampler(range(2)), [1, 1], 10).load_state_dict(state | {"rows": [2]})


def test_a_row_that_fits_no_bin_is_named() -> None:
    with pytest.raises(ValueError, match="row 1 has the length 11, a bin holds 10"):
        pack([3, 11], 10)
    with pytest.raises(ValueError, match="length of row 0 must be a whole number of 0 or more, got -1"):
        pack([-1], 10)
    with pytest.raises(ValueError, match=r"a drawn row must be a whole number in 0\.\.1, got 2"):
        list(PackedBatches(SequentialSampler(range(3)), [1, 1], 10))

"""Packing: nothing lost, nothing over the edge, near the fewest bins; batches of an epoch; bad input."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import SequentialSampler

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


def test_a_row_that_fits_no_bin_is_named() -> None:
    with pytest.raises(ValueError, match="row 1 has the length 11, a bin holds 10"):
        pack([3, 11], 10)
    with pytest.raises(ValueError, match="length of row 0 must be a whole number of 0 or more, got -1"):
        pack([-1], 10)
    with pytest.raises(ValueError, match=r"a drawn row must be a whole number in 0\.\.1, got 2"):
        list(PackedBatches(SequentialSampler(range(3)), [1, 1], 10))

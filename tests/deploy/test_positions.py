"""Golomb-Rice codes of positions: round trip, size against entropy, refusal of what is no code."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trimtab.deploy import positions
from trimtab.deploy.store_report import mask_entropy_bits


def slow_code(where: list[int], k: int) -> list[int]:
    """The code bit by bit, from its definition."""
    low, unary, last = [], [], -1
    for position in where:
        gap = position - last - 1
        last = position
        low += [(gap >> bit) & 1 for bit in range(k)]
        unary += [0] * (gap >> k) + [1]
    low += [0] * (-len(low) % 8)
    bits = low + unary
    bits += [0] * (-len(bits) % 8)
    return [sum(bit << place for place, bit in enumerate(bits[start : start + 8])) for start in range(0, len(bits), 8)]


@settings(max_examples=200, deadline=None)
@given(st.sets(st.integers(0, 3000)), st.integers(1, 500))
def test_round_trip_and_definition(chosen: set[int], spare: int) -> None:
    where = np.array(sorted(chosen), dtype=np.int64)
    length = max(chosen, default=0) + spare
    k, packed = positions.encode(where)
    assert packed.tolist() == slow_code(where.tolist(), k)
    assert np.array_equal(positions.decode(packed, where.size, k, length), where)


@pytest.mark.parametrize("density", [0.5, 0.2, 0.1, 0.05, 0.01, 0.001])
def test_within_a_few_percent_of_the_mask_entropy(density: float) -> None:
    mask = np.random.default_rng(0).random(400_000) < density
    _, packed = positions.encode(np.flatnonzero(mask))
    entropy = mask_entropy_bits(mask.size, int(mask.sum())) / 8
    assert entropy <= packed.size * 1.005  # cannot be beaten but by chance
    assert packed.size <= entropy * 1.045


def test_k_zero_is_the_bitmask() -> None:
    mask = np.random.default_rng(1).random(1000) < 0.6
    mask[-1] = True
    k, packed = positions.encode(np.flatnonzero(mask))
    assert k == 0
    assert np.array_equal(packed, np.packbits(mask, bitorder="little"))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=60))
def test_parameter_is_near_the_best_of_all(gaps: list[int]) -> None:
    """Near the best for geometric gaps; for any list at most a bit per gap from the best."""
    array = np.array(gaps, dtype=np.int64)

    def bits(k: int) -> int:
        return array.size * (k + 1) + int((array >> k).sum())

    assert bits(positions.best_parameter(array)) <= min(bits(k) for k in range(20)) + array.size


def test_gap_code_beats_the_bitmask_where_it_is_sparse() -> None:
    where = np.arange(0, 100_000, 100)
    k, packed = positions.encode(where)
    assert k > 0
    assert packed.size < 100_000 / 8 / 10


@pytest.mark.parametrize(
    ("packed", "count", "k", "length", "says"),
    [
        ([0b101], 2, 0, 2, "beyond"),
        ([0b101], 3, 0, 8, "holds 2 codes, expected 3"),
        ([0b101, 0], 2, 0, 99, "left over"),
        ([0b101], 9, 0, 8, "do not fit"),
        ([], 1, 0, 8, "too few"),
        ([1], 1, 1, 8, "too few"),
        ([1], 1, 40, 8, "does not fit"),
        ([1], 1, -1, 8, "does not fit"),
        ([0b10, 1], 1, 1, 8, "padding"),
        ([1], 0, 0, 8, "without non-zeros"),
        ([0, 0, 0, 0, 0, 128], 1, 5, 32, "beyond"),
    ],
)
def test_refuses_what_is_no_code(packed: list[int], count: int, k: int, length: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        positions.decode(np.array(packed, dtype=np.uint8), count, k, length)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=12), st.integers(0, 30), st.integers(0, 8), st.integers(0, 300))
def test_arbitrary_bytes_decode_to_positions_or_are_refused(data: bytes, count: int, k: int, length: int) -> None:
    try:
        where = positions.decode(np.frombuffer(data, dtype=np.uint8), count, k, length)
    except ValueError:
        return
    assert where.size == count
    assert count == 0 or (where[0] >= 0 and where[-1] < length)
    assert (np.diff(where) > 0).all()


def test_entropy_formula() -> None:
    assert math.isclose(mask_entropy_bits(8, 2), 8 * (0.25 * 2 + 0.75 * math.log2(4 / 3)))

"""keep: the hard, easy and middle part, class by class; ids of batches; bad input."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trimtab import datasets
from trimtab.datasets import Batches, keep

SCORES = torch.tensor([0.3, math.inf, 0.1, 0.9, 0.5, 0.1])


def test_the_part_asked_for_stays_in_rising_order() -> None:
    assert keep(SCORES, 0.5).tolist() == [1, 3, 4]
    assert keep(SCORES, 0.5, "easy").tolist() == [0, 2, 5]
    assert keep(SCORES, 0.34, "middle").tolist() == [0, 4]
    assert keep(SCORES, 1.0).tolist() == list(range(6))
    assert keep(SCORES, 0.01).tolist() == [1]
    assert keep(torch.zeros(4), 0.5, "easy").tolist() == [0, 1]


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3)), min_size=1, max_size=60), st.floats(0.05, 1))
def test_each_class_keeps_its_share(rows: list[tuple[float, int]], fraction: float) -> None:
    scores, kinds = torch.tensor([one for one, _ in rows]), torch.tensor([kind for _, kind in rows])
    kept = keep(scores, fraction, by_class=kinds)
    assert kept.tolist() == sorted(set(kept.tolist()))
    for kind in set(kinds.tolist()):
        own = scores[kinds == kind]
        chosen = scores[kept][kinds[kept] == kind]
        assert len(chosen) == max(1, round(fraction * len(own)))
        assert torch.equal(chosen.sort().values, own.sort().values[-len(chosen) :])


@pytest.mark.parametrize("world", [1, 2])
def test_ids_of_batches_are_the_rows_of_their_images(world: int) -> None:
    digits = datasets.load("digits")
    for rank in range(world):
        batches = Batches(digits.train, digits, 100, seed=3, augment="shift", rank=rank, world_size=world)
        pairs = list(zip(batches.ids(2), batches.epoch(2), strict=True))
        assert len(pairs) == len(batches)
        assert all(torch.equal(digits.train.targets[ids], targets) for ids, (_, targets) in pairs)
    smaller = digits.train.at(keep(torch.rand(len(digits.train)), 0.25, by_class=digits.train.targets))
    assert set(smaller.targets.tolist()) == set(range(10))


BAD: list[tuple[Any, str]] = [
    (lambda: keep(torch.tensor([1.0, math.nan, math.nan]), 0.5), "2 examples have no score, the first is 1"),
    (lambda: keep(SCORES, 0), r"fraction must lie in \(0, 1\], got 0"),
    (lambda: keep(SCORES, 0.5, "best"), "which must be one of 'hard', 'easy', 'middle', got 'best'"),  # type: ignore[arg-type]
    (lambda: keep(torch.zeros(2, 2), 0.5), "scores must be one number an example"),
    (lambda: keep(SCORES, 0.5, by_class=torch.zeros(2)), "by_class must be one class an example"),
]  # fmt: skip


@pytest.mark.parametrize(("act", "words"), BAD)
def test_bad_input_is_one_error(act: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        act()

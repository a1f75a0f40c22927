"""Packing: rows of unequal length into as few bins as may be."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from trimtab.checks import whole


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest first, each into the fullest bin that still holds it.

    Needs at most 11/9 of the fewest bins, and 6/9 of one more (Dósa 2007, for first-fit decreasing; best-fit is never worse in
    that bound). Of bins equally full the first, of rows equally long the first: the same lengths give the same bins.

    Args:
        lengths: of the rows, whole numbers of 0 or more.
        capacity: of a bin.

    Returns:
        the bins, each with the positions of its rows, longest first.

    Raises:
        ValueError: a row is longer than a bin; it is named.

    Example:
        >>> pack([5, 7, 5, 2, 4, 2, 5, 1, 6], capacity=10)
        [[1, 3, 7], [8, 4], [0, 2], [6, 5]]
    """
    whole("capacity", capacity, least=1)
    for at, length in enumerate(lengths):
        if whole(f"length of row {at}", length, least=0) > capacity:
            raise ValueError(f"row {at} has the length {length}, a bin holds {capacity}; cut it or take larger bins")
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # what is free in each bin, and which: rising
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        place = bisect_left(room, (lengths[at], -1))
        if place == len(room):
            free, number = capacity, len(bins)
            bins.append([])
        else:
            free, number = room.pop(place)
        bins[number].append(at)
        insort(room, (free - lengths[at], number))
    return bins


class PackedBatches(Sampler[list[int]]):
    """Batches of at most so many tokens: what a sampler draws in an epoch, packed by `pack`, the bins in a random order.

    For a `DataLoader(batch_sampler=...)` whose collator puts the rows of a batch behind one another into one sequence without
    padding, such as transformers' `DataCollatorWithFlattening`. Which rows an epoch draws does not change.

    Args:
        sampler: of rows, such as `CurriculumSampler`; drawn anew for each epoch.
        lengths: of all rows.
        capacity: of a batch.
        seed: of the order of the batches, with the number of the epoch.

    Raises:
        ValueError: a row is longer than a batch; (when iterated) the sampler draws a row that has no length.

    Example:
        >>> batches = PackedBatches(torch.utils.data.SequentialSampler(range(4)), [3, 6, 7, 4], capacity=10)
        >>> sorted(map(sorted, batches))
        [[0, 2], [1, 3]]
    """

    def __init__(self, sampler: Sampler[int], lengths: Sequence[int], capacity: int, seed: int = 0) -> None:
        pack(lengths, capacity)
        self.sampler, self.lengths, self.capacity = sampler, lengths, capacity
        self.seed, self.epoch = whole("seed", seed, least=0), 0

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of the next epoch."""
        drawn = list(self.sampler)
        for row in drawn:
            whole("a drawn row", row, 0, len(self.lengths) - 1)
        bins = pack([self.lengths[row] for row in drawn], self.capacity)
        order = torch.randperm(len(bins), generator=torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch))
        self.epoch += 1
        for at in order.tolist():
            yield [drawn[place] for place in bins[at]]

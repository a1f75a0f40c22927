"""Packing: rows of unequal length into as few bins as may be."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Any

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
        sampler: of rows, such as `CurriculumSampler`; drawn anew for each epoch. With several ranks it must draw the same rows
            on all of them: the batches are shared out here.
        lengths: of all rows.
        capacity: of a batch.
        seed: of the order of the batches, with the number of the epoch.
        rank, world: this process and their number; every rank gets as many batches, the first ones of the order once more
            where they do not go round.

    Raises:
        ValueError: a row is longer than a batch, a rank out of range; (when iterated) the sampler draws a row that has no
            length.

    Attributes:
        epoch: the running one, or the next.

    Example:
        >>> batches = PackedBatches(torch.utils.data.SequentialSampler(range(4)), [3, 6, 7, 4], capacity=10)
        >>> len(batches), sorted(map(sorted, batches))
        (2, [[0, 2], [1, 3]])
    """

    def __init__(
        self,
        sampler: Sampler[int],
        lengths: Sequence[int],
        capacity: int,
        seed: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        pack(lengths, capacity)
        self.sampler, self.lengths, self.capacity = sampler, lengths, capacity
        self.seed, self.epoch = whole("seed", seed, least=0), 0
        self.world = whole("world", world, least=1)
        self.rank = whole("rank", rank, 0, world - 1)
        self._rows: list[int] | None = None
        self._batches: list[list[int]] = []
        self._position = 0
        self._resumed = False

    def __len__(self) -> int:
        """Batches of this rank in the epoch, of which it draws the rows where that was not done yet."""
        self._ready()
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        """The batches of an epoch; after `load_state_dict` those that are left of it. One that was left off is not taken up."""
        if self._position and not self._resumed:
            self._end()
        self._ready()
        self._resumed = False
        epoch = self.epoch
        while self.epoch == epoch and self._position < len(self._batches):
            self._position += 1
            yield self._batches[self._position - 1]
        if self.epoch == epoch:
            self._end()

    def set_epoch(self, epoch: int) -> None:
        """Go to this epoch, and tell the sampler; nothing happens where it is the running one."""
        if whole("epoch", epoch, least=0) != self.epoch:
            self._rows, self._position, self._resumed, self.epoch = None, 0, False, epoch
        if hasattr(self.sampler, "set_epoch"):
            self.sampler.set_epoch(epoch)

    def state_dict(self, consumed: int | None = None) -> dict[str, Any]:
        """Where the epoch stands: its rows and how many batches were handed out; with the sampler's own state if it has one.

        Args:
            consumed: batches of this rank that were trained on. Default those handed out, which are more where workers
                fetch ahead.
        """
        inner = self.sampler.state_dict() if hasattr(self.sampler, "state_dict") else None
        return {
            "seed": self.seed,
            "capacity": self.capacity,
            "epoch": self.epoch,
            "rows": None if self._rows is None else list(self._rows),
            "position": self._position if consumed is None else whole("consumed", consumed, 0, len(self._batches)),
            "sampler": inner,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the middle of the epoch, batch for batch; a sampler's scheduler must have its state back before.

        Raises:
            ValueError: the state is of another seed or capacity, or of rows that are not there.
        """
        if (state["seed"], state["capacity"]) != (self.seed, self.capacity):
            raise ValueError(
                f"the state has seed {state['seed']} and capacity {state['capacity']}, these batches {self.seed} and "
                f"{self.capacity}"
            )
        rows = None if state["rows"] is None else list(state["rows"])
        batches = [] if rows is None else self._of(rows, state["epoch"])
        position = whole("position", state["position"], 0, len(batches))
        if state["sampler"] is not None:
            self.sampler.load_state_dict(state["sampler"])  # type: ignore[attr-defined]
        self.epoch, self._rows, self._batches = state["epoch"], rows, batches
        self._position, self._resumed = position, rows is not None

    def _ready(self) -> None:
        if self._rows is None:
            rows = list(self.sampler)
            self._batches = self._of(rows, self.epoch)
            self._rows, self._position = rows, 0

    def _end(self) -> None:
        self._rows, self._position, self._resumed = None, 0, False
        self.epoch += 1

    def _of(self, rows: Sequence[int], epoch: int) -> list[list[int]]:
        """This rank's batches of these rows, in the epoch's order."""
        for row in rows:
            whole("a drawn row", row, 0, len(self.lengths) - 1)
        bins = pack([self.lengths[row] for row in rows], self.capacity)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(bins), generator=generator).tolist()
        order += [order[at % len(order)] for at in range(-len(order) % self.world)] if order else []
        return [[rows[place] for place in bins[at]] for at in order[self.rank :: self.world]]

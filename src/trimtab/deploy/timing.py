"""How much faster one call is than another, measured side by side."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Comparison:
    """Two calls timed in turn: the pair whose ratio is the median of all pairs.

    Attributes:
        before: seconds of the first.
        after: seconds of the second, right after it.
    """

    before: float
    after: float

    @property
    def ratio(self) -> float:
        """First over second; above 1 the second is faster."""
        return self.before / self.after


def _seconds(call: Callable[[], object], times: int) -> float:
    start = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - start) / times


def compare(before: Callable[[], object], after: Callable[[], object], budget: float = 0.2) -> Comparison:
    """Time the calls as before, after, before, after ... so that a change of the machine's speed meets both alike.

    Each measurement repeats its call for about 1 ms; there are between 5 and 51 pairs, fewer when they are slow [ours].
    Times and ratio are of one pair, the median one (of an even number the lower), so that they cannot contradict each other.

    Args:
        before: the call to beat.
        after: the other call.
        budget: seconds to spend, once five pairs are done.

    Example:
        >>> compare(lambda: sum(range(20_000)), lambda: None, budget=0.01).ratio > 1
        True
    """
    for call in (before, after):
        call()
    times = [max(1, round(0.001 / max(_seconds(call, 2), 1e-7))) for call in (before, after)]
    pairs: list[Comparison] = []
    stop = time.perf_counter() + budget
    while len(pairs) < 5 or (time.perf_counter() < stop and len(pairs) < 51):
        pairs.append(Comparison(_seconds(before, times[0]), _seconds(after, times[1])))
    return sorted(pairs, key=lambda pair: pair.ratio)[(len(pairs) - 1) // 2]


def interleaved(calls: Sequence[Callable[[], object]], budget: float = 0.5) -> list[float]:
    """Seconds of each call, the median of rounds in which every call has its turn: one number for each, whoever is compared.

    Ratios of these numbers are what the numbers say. Between 5 and 51 rounds, fewer when they are slow [ours].

    Example:
        >>> slow, fast = interleaved([lambda: sum(range(20_000)), lambda: None], budget=0.01)
        >>> slow > fast
        True
    """
    times = []
    for call in calls:
        call()
        times.append(max(1, round(0.001 / max(_seconds(call, 2), 1e-7))))
    rounds: list[list[float]] = []
    stop = time.perf_counter() + budget * len(calls)
    while len(rounds) < 5 or (time.perf_counter() < stop and len(rounds) < 51):
        rounds.append([_seconds(call, count) for call, count in zip(calls, times, strict=True)])
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def compare_twice(
    before: Callable[[], object], after: Callable[[], object], budget: float = 0.2, above: float = 1.0
) -> Comparison:
    """As `compare`; a gain above `above` is measured a second time and the lesser of the two is returned.

    One lucky measurement on a busy machine is then not taken for a gain [ours].

    Example:
        >>> compare_twice(lambda: None, lambda: sum(range(20_000)), budget=0.01).ratio < 1
        True
    """
    first = compare(before, after, budget)
    if first.ratio <= above:
        return first
    return min(first, compare(before, after, budget), key=lambda each: each.ratio)

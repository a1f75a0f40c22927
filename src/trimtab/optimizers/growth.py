"""Whether a number of a training run grows for long, faster than such numbers do in a run that is well."""

from __future__ import annotations

import math
from typing import Any

RATE = 1e-3
"""What is usual follows by at most this share a step [ours]: a doubling in 700 steps is no news."""
FALL = 5
"""It follows downwards so many times faster [ours]: a number that became small and grows again is looked at from there."""
LEAST = 10
"""Values that collect at least, however far apart they lie [ours]."""
SMOOTH = 0.9
"""Of the running mean of the number's logarithm [ours]: one value alone moves it by a tenth."""


class Growth:
    """A running mean of a number's logarithm, against a reference that follows it slowly.

    With `l` the running mean and `r` the reference, k steps after the last value: `l <- 0.9 l + 0.1 ln v`, then r moves towards
    l by at most `RATE k`, downwards by at most five times that. Where `l - r > ln(factor)` the number has grown; r is then set
    to l, so that the next alarm is for as much growth again. The first `warmup` steps only collect, and at least ten values.

    Args:
        factor: growth that is said; above 1.
        warmup: steps that collect.

    Example:
        >>> growth = Growth(factor=2.0, warmup=3)
        >>> [step for step in range(100) if growth.learn(1.02 ** max(0, step - 20), step)]
        [67]
    """

    def __init__(self, factor: float, warmup: int) -> None:
        self.limit, self.warmup = math.log(factor), warmup
        self.count, self.level, self.reference, self.first, self.last = 0, 0.0, 0.0, 0, 0

    def learn(self, value: float, at: int) -> float:
        """Take in the value of a step; how many times its usual self it has become where that is news, else 0."""
        if not 0 < value < math.inf:
            return 0.0
        self.first, self.count = at if self.count == 0 else self.first, self.count + 1
        self.level += max(1 / self.count, 1 - SMOOTH) * (math.log(value) - self.level)
        away, most = self.level - self.reference, RATE * (at - self.last)
        self.last = at
        if at - self.first < self.warmup or self.count <= LEAST:
            self.reference = self.level
            return 0.0
        self.reference += min(max(away, -FALL * most), most)
        grown = self.level - self.reference
        if grown <= self.limit:
            return 0.0
        self.reference = self.level
        return math.exp(grown)

    def state_dict(self) -> dict[str, Any]:
        """What it holds."""
        return {name: getattr(self, name) for name in ("count", "level", "reference", "first", "last")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over."""
        self.count, self.first, self.last = (int(state[name]) for name in ("count", "first", "last"))
        self.level, self.reference = float(state["level"]), float(state["reference"])

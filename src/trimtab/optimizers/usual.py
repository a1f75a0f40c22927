"""What a number of a training run usually is, and how far from it a new one lies."""

from __future__ import annotations

import math
from typing import Any

LEAST = 0.1
"""Least standard deviation of a logarithm: below it a norm that hardly moves would make alarms of nothing [ours]."""
LEAST_SHARE = 0.05
"""Least standard deviation of what is not judged by its logarithm, as a share of what it was while collecting [ours]."""
FLOOR = 0.1
"""Norms below this share of what they were while collecting count as that: a single hard example late in training, when
norms are small, is no spike [ours]."""


class Usual:
    """Running mean and deviation of a number, of its logarithm where only ratios count.

    The first `warmup` values only collect. Then, with v the value (or its logarithm), m and s: `z = (v - m) / max(s, least)`,
    after which `m <- decay m + (1 - decay) v`, `s^2 <- decay s^2 + (1 - decay) (v - m)^2`, with v at most `m + threshold s`:
    a spike moves them as far as the greatest value that is none.

    Args:
        decay: of mean and variance.
        warmup: values that collect.
        threshold: z above which a value is a spike.
        logarithm: whether ratios count.

    Example:
        >>> usual = Usual(decay=0.9, warmup=3, threshold=6.0, logarithm=True)
        >>> for value in (1.0, 1.0, 1.0):
        ...     usual.learn(value)
        >>> round(usual.z(10.0), 2), usual.value  # ln 10 over the least deviation
        (23.03, 1.0)
    """

    def __init__(self, decay: float, warmup: int, threshold: float, *, logarithm: bool) -> None:
        self.decay, self.warmup, self.threshold, self.logarithm = decay, warmup, threshold, logarithm
        self.count, self.mean, self.variance, self.start = 0, 0.0, 0.0, 0.0

    @property
    def ready(self) -> bool:
        """Whether enough was collected to judge."""
        return self.count >= self.warmup

    @property
    def value(self) -> float:
        """The usual value itself."""
        return math.exp(self.mean) if self.logarithm else self.mean

    @property
    def _deviation(self) -> float:
        least = LEAST if self.logarithm else LEAST_SHARE * abs(self.start)
        return max(math.sqrt(self.variance), least)

    def _scaled(self, value: float) -> float:
        if not self.logarithm:
            return value
        floor = FLOOR * self.start if self.ready else 0.0
        return math.log(max(value, floor, 1e-300))

    def z(self, value: float) -> float:
        """Deviations above the mean; 0 while collecting or where nothing ever deviated, infinite where it is not finite."""
        if not math.isfinite(value):
            return math.inf
        if not self.ready or not self._deviation:
            return 0.0
        return (self._scaled(value) - self.mean) / self._deviation

    def learn(self, value: float) -> None:
        """Take a value in; one that is not finite is not."""
        if not math.isfinite(value):
            return
        found, ready = self._scaled(value), self.ready
        if ready:
            found = min(found, self.mean + self.threshold * self._deviation)
        else:
            self.start += (value - self.start) / (self.count + 1)
        weight = 1 - self.decay if ready else 1 / (self.count + 1)
        away = found - self.mean
        self.mean += weight * away
        self.variance = (1 - weight) * (self.variance + weight * away * away)
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        """What it holds."""
        return {"count": self.count, "mean": self.mean, "variance": self.variance, "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it over."""
        self.count = int(state["count"])
        self.mean, self.variance, self.start = (float(state[name]) for name in ("mean", "variance", "start"))

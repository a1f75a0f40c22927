"""The stage scheduler of the public code that calls itself MedCLM's implementation."""

from __future__ import annotations

import math
import statistics
from typing import Any

from trimtab.checks import number
from trimtab.curricula.base import STAGES, Domain, StageScheduler

EPSILON = 1e-8


class Released(StageScheduler):
    """Easy first; Medium by how far its loss lies below Easy's; Hard when all losses have settled.

    Once per epoch e, with smoothed losses `m <- (1 - r) m + r loss` that start at 1e-3:

        g = (m_easy - m_medium) / (m_easy + 1e-8)
        beta(e) = 0 for e <= 4, else min(1, (e - 4) / 10)
        p_medium = beta(e) sigmoid((g - 0.5) / 0.1),       0 for e < 4
        p_hard = lambda for e >= 19, else 0

    lambda starts at 0 and grows by 0.05 (at most 0.3) when the last five global losses lie within 0.01 and the median gap over
    the domains is 0.6 or more; it is multiplied by 0.9 when the global loss rose by 0.05 or more. Hard is drawn first, then
    Medium: shares are `lambda`, `(1 - lambda) p_medium` and the rest Easy. Ours, where the description is silent: the global
    loss is the mean over all items of an epoch, smoothed alike; "within" is greatest minus least.

    It locks in: g must reach 0.5, so Medium's loss must fall to half of Easy's before Medium is shown, and it does not fall
    unless it is shown. Kept for comparison.

    Args:
        smoothing: r. Default 0.9, the code's.
        start: first value of the smoothed losses. Default 1e-3, the code's.

    Raises:
        ValueError: r outside (0, 1], or a start that is not finite: from infinity no smoothed loss ever comes down, so that
            Easy is never left.

    Source: public code beside arXiv 2510.04477; the paper's text is not readable.

    Example:
        >>> scheduler = Released()
        >>> scheduler.add_domain("nodule")
        >>> for epoch in range(30):
        ...     for stage, share in scheduler.shares("nodule").items():
        ...         if share > 0:
        ...             scheduler.observe("nodule", stage, {"easy": 1.0, "medium": 1.2, "hard": 1.5}[stage])
        ...     decisions = scheduler.end_epoch()
        >>> {stage: round(share, 4) for stage, share in decisions[0].shares.items()}
        {'easy': 0.9991, 'medium': 0.0009, 'hard': 0.0}
    """

    name = "released"

    def __init__(self, smoothing: float = 0.9, start: float = 1e-3) -> None:
        super().__init__(STAGES)
        self.smoothing = number("smoothing", smoothing, above=0, most=1)
        self.start = number("start", start)  # from infinity no smoothed loss ever comes down
        self._hard = 0.0
        self._global: list[float] = []

    def _smooth(self, domain: Domain, stage: str, loss: float) -> None:
        before = domain.losses.get(stage, self.start)
        domain.losses[stage] = (1 - self.smoothing) * before + self.smoothing * loss

    def _gap(self, domain: Domain) -> float:
        easy, medium = (domain.losses.get(stage, self.start) for stage in ("easy", "medium"))
        return (easy - medium) / (easy + EPSILON)

    def _between(self) -> None:
        sums = [pair for domain in self._domains.values() for pair in domain.sums.values()]
        if not sums:
            return
        mean = sum(total for total, _ in sums) / sum(count for _, count in sums)
        before = self._global[-1] if self._global else self.start
        self._global = [*self._global, (1 - self.smoothing) * before + self.smoothing * mean][-5:]
        if self.epoch + 1 < 19:
            return
        settled = len(self._global) == 5 and max(self._global) - min(self._global) <= 0.01
        gap = statistics.median(self._gap(domain) for domain in self._domains.values())
        if settled and gap >= 0.6:
            self._hard = min(0.3, self._hard + 0.05)
        elif self._global[-1] - before >= 0.05:
            self._hard *= 0.9

    def _decide(self, domain: Domain) -> tuple[dict[str, float], str]:
        ramp = 0.0 if self.epoch <= 4 else min(1.0, (self.epoch - 4) / 10)
        gap = self._gap(domain)
        medium = ramp / (1 + math.exp(min(-(gap - 0.5) / 0.1, 700.0))) if ramp else 0.0  # e^700 is a float, e^710 none
        hard = self._hard if self.epoch >= 19 else 0.0
        shares = {"easy": (1 - hard) * (1 - medium), "medium": (1 - hard) * medium, "hard": hard}
        if not ramp:
            return shares, "warm-up: Easy only up to epoch 4"
        reason = f"gap {gap:.3f} to Medium (0.5 would give half), ramp {ramp:.1f}"
        return shares, reason + (f", lambda {hard:.3f}" if self.epoch >= 19 else "")

    def _own_state(self) -> dict[str, Any]:
        return {"hard": self._hard, "global": list(self._global)}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._hard, self._global = float(state["hard"]), [float(value) for value in state["global"]]

"""Our scheduler: a stage opens when its loss has come near that of the stage before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trimtab.checks import number, positive, whole
from trimtab.curricula.base import STAGES, Domain, StageScheduler


class Adaptive(StageScheduler):
    """Each domain climbs the stages on its own; open stages are never left out, closed ones are measured by probes [ours].

    A domain stands at a level k, at first its easiest stage. Every open stage (those up to k) gets the share `floor`, the
    level's stage the rest. After `least` epochs at a level the next stage gets the share `trial`: what only showing it can
    teach, such as the form of its answers, cannot come from other stages, and a stage never shown may never come near. Before
    a decision, `stale` names the stages up to k + 1 without a measurement of the running epoch; a probe batch of each, without
    gradient, refreshes them. With smoothed losses `m <- (1 - r) m + r loss`, whose first value is the first loss measured, the
    domain goes to k + 1 when

        m_{k+1} <= ratio m_k                         (the harder stage is nearly as well answered), or
        m_k > (1 - progress) min of m_k before       for `patience` epochs in a row (the level teaches no more).

    A stage that was never measured has no number, and no promotion rests on it. A domain never goes back.

    Args:
        stages: from easy to hard.
        ratio: least promotion ratio, above 0. Default 1.5.
        floor: share of every open stage below the level. Default 0.15; times the number of stages it must stay below 1.
        patience: epochs without progress after which the next stage opens all the same. Default 4.
        progress: relative fall of the level's loss that counts. Default 0.02.
        smoothing: r. Default 0.5.
        least: epochs that a level lasts at least, since an untrained model answers all stages alike. Default 3.
        trial: share of the next, still closed stage after that. Default 0.1; with 0 runs on drawn X-rays stayed at Medium
            while Hard's loss rose to 100 times Medium's (docs/evidence/medclm-curriculum.md).

    Raises:
        ValueError: a setting is out of range.

    Example:
        >>> scheduler = Adaptive(least=1)
        >>> scheduler.add_domain("nodule")
        >>> scheduler.shares("nodule"), scheduler.stale("nodule")
        ({'easy': 1.0, 'medium': 0.0, 'hard': 0.0}, ('easy', 'medium'))
        >>> scheduler.observe("nodule", "easy", 1.0)
        >>> scheduler.observe("nodule", "medium", 1.4)      # a probe batch
        >>> decision, = scheduler.end_epoch()
        >>> decision.shares, decision.reason
        ({'easy': 0.15, 'medium': 0.85, 'hard': 0.0}, 'to medium: its loss 1.4 is within 1.5 times that of easy, 1')
    """

    name = "adaptive"

    def __init__(
        self,
        stages: Sequence[str] = STAGES,
        ratio: float = 1.5,
        floor: float = 0.15,
        patience: int = 4,
        progress: float = 0.02,
        smoothing: float = 0.5,
        least: int = 3,
        trial: float = 0.1,
    ) -> None:
        super().__init__(stages)
        self.ratio = positive("ratio", ratio)
        self.floor = number("floor", floor, least=0, most=1)
        self.trial = number("trial", trial, least=0, most=1)
        if floor * len(self.stages) >= 1 or floor * (len(self.stages) - 2) + trial >= 1:
            raise ValueError(f"floor {floor} times {len(self.stages)} stages, and trial {trial}, must stay below 1")
        self.patience, self.least = whole("patience", patience, 1), whole("least", least, 1)
        self.progress = number("progress", progress, least=0, most=1)
        self.smoothing = number("smoothing", smoothing, above=0, most=1)
        self._why: dict[str, str] = {}

    def stale(self, domain: str) -> tuple[str, ...]:
        """Open stages and the next one, where the running epoch has measured none of their items."""
        found = self._known(domain)
        return tuple(stage for stage in found.available[: self._level(found) + 2] if stage not in found.sums)

    def _level(self, domain: Domain) -> int:
        return int(domain.notes.get("level", 0))

    def _smooth(self, domain: Domain, stage: str, loss: float) -> None:
        before = domain.losses.get(stage)
        domain.losses[stage] = loss if before is None else (1 - self.smoothing) * before + self.smoothing * loss

    def _between(self) -> None:
        for name, domain in self._domains.items():
            self._why[name] = self._step(domain)

    def _step(self, domain: Domain) -> str:
        level = self._level(domain)
        current = domain.available[level]
        own = domain.losses.get(current)
        notes = domain.notes
        notes["epochs"] = notes.get("epochs", 0) + 1
        if own is None:
            return f"stays: {current} was not measured yet"
        best = notes.get("best")
        if best is None or own <= (1 - self.progress) * best:
            notes["best"], notes["idle"] = own, 0
        else:
            notes["idle"] = notes.get("idle", 0) + 1
        if level + 1 == len(domain.available):
            return f"stays: {current} is the last stage"
        following = domain.available[level + 1]
        harder = domain.losses.get(following)
        promoted = ""
        if notes["epochs"] >= self.least:
            if harder is not None and harder <= self.ratio * own:
                promoted = (
                    f"to {following}: its loss {harder:.3g} is within {self.ratio:g} times that of {current}, {own:.3g}"
                )
            elif notes["idle"] >= self.patience:
                promoted = f"to {following}: the loss of {current}, {own:.3g}, did not fall for {self.patience} epochs"
        if promoted:
            domain.notes = {"level": level + 1, "epochs": 0}
            return promoted
        if harder is None:
            return f"stays at {current}: {following} was not measured yet"
        compared = f"the loss of {following}, {harder:.3g}, against {own:.3g}"
        return f"stays at {current}: {compared} (to {following} at {self.ratio:g} times)"

    def _decide(self, domain: Domain) -> tuple[dict[str, float], str]:
        level = self._level(domain)
        shares = dict.fromkeys(self.stages, 0.0)
        for stage in domain.available[:level]:
            shares[stage] = self.floor
        rest = 1 - level * self.floor
        if level + 1 < len(domain.available) and domain.notes.get("epochs", 0) >= self.least:
            shares[domain.available[level + 1]] = self.trial
            rest -= self.trial
        shares[domain.available[level]] = round(rest, 12)
        name = next(key for key, value in self._domains.items() if value is domain)
        return shares, self._why.get(name, f"begins with {domain.available[0]}")

    def _own_state(self) -> dict[str, Any]:
        return {"why": dict(self._why)}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        self._why = dict(state["why"])

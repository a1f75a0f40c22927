"""Schedulers that look at no loss: a fixed climb, one stage only, a constant mix."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.checks import shares, whole
from trimtab.curricula.base import STAGES, Domain, StageScheduler


class Linear(StageScheduler):
    """From the first stage to the last in equal steps, two neighbouring stages at a time: the baseline of every curriculum.

    At epoch e of `epochs`, `p = (K - 1) min(1, e / (epochs - 1))` for K stages; stage k gets the share `max(0, 1 - |p - k|)`.

    Args:
        epochs: length of the climb, 2 or more; later epochs stay at the last stage.
        stages: from easy to hard.

    Raises:
        ValueError: fewer than two epochs.

    Example:
        >>> scheduler = Linear(epochs=5)
        >>> scheduler.add_domain("nodule")
        >>> for _ in range(3):
        ...     decisions = scheduler.end_epoch()
        >>> scheduler.shares("nodule")
        {'easy': 0.0, 'medium': 0.5, 'hard': 0.5}
    """

    name = "linear"

    def __init__(self, epochs: int, stages: Sequence[str] = STAGES) -> None:
        super().__init__(stages)
        self.epochs = whole("epochs", epochs, 2)

    def _decide(self, domain: Domain) -> tuple[dict[str, float], str]:
        place = (len(self.stages) - 1) * min(1.0, self.epoch / (self.epochs - 1))
        shares = {stage: max(0.0, 1 - abs(place - k)) for k, stage in enumerate(self.stages)}
        return shares, f"epoch {min(self.epoch + 1, self.epochs)} of a fixed climb over {self.epochs}"


class Reverse(Linear):
    """The climb of `Linear` walked down, from the last stage to the first: does the direction matter?

    Args:
        epochs: length of the descent, 2 or more; later epochs stay at the first stage.
        stages: from easy to hard.

    Raises:
        ValueError: fewer than two epochs.

    Example:
        >>> scheduler = Reverse(epochs=5)
        >>> scheduler.add_domain("nodule")
        >>> decisions = scheduler.end_epoch()
        >>> scheduler.shares("nodule")
        {'easy': 0.0, 'medium': 0.5, 'hard': 0.5}
    """

    name = "reverse"

    def _decide(self, domain: Domain) -> tuple[dict[str, float], str]:
        climb, reason = super()._decide(domain)
        return dict(zip(self.stages, reversed(climb.values()), strict=True)), reason.replace("climb", "descent")


class EasyOnly(StageScheduler):
    """The first stage and nothing else: what does the curriculum add to it?

    Example:
        >>> scheduler = EasyOnly()
        >>> scheduler.add_domain("nodule")
        >>> scheduler.shares("nodule")
        {'easy': 1.0, 'medium': 0.0, 'hard': 0.0}
    """

    name = "easy_only"

    def _decide(self, domain: Domain) -> tuple[dict[str, float], str]:
        shares = {stage: float(k == 0) for k, stage in enumerate(self.stages)}
        return shares, f"{self.stages[0]} only"


class HardOnly(StageScheduler):
    """The last stage and nothing else: what do the easier ones add to it?

    Example:
        >>> scheduler = HardOnly()
        >>> scheduler.add_domain("nodule")
        >>> scheduler.shares("nodule")
        {'easy': 0.0, 'medium': 0.0, 'hard': 1.0}
    """

    name = "hard_only"

    def _decide(self, domain: Domain) -> tuple[dict[str, float], str]:
        return {stage: float(stage == self.stages[-1]) for stage in self.stages}, f"{self.stages[-1]} only"


class Mixed(StageScheduler):
    """All stages in one constant mix from the first step: no curriculum.

    Args:
        weights: one number of 0 or more per stage. Default all equal.
        stages: from easy to hard.

    Raises:
        ValueError: a weight is negative or not finite, all are 0, or their number is not that of the stages.

    Example:
        >>> scheduler = Mixed(weights=(2, 1, 1))
        >>> scheduler.add_domain("nodule", available=("easy", "hard"))      # no items of medium: shares rescaled
        >>> {stage: round(share, 3) for stage, share in scheduler.shares("nodule").items()}
        {'easy': 0.667, 'medium': 0.0, 'hard': 0.333}
    """

    name = "mixed"

    def __init__(self, weights: Sequence[float] | None = None, stages: Sequence[str] = STAGES) -> None:
        super().__init__(stages)
        given = tuple(weights) if weights is not None else (1.0,) * len(self.stages)
        if len(given) != len(self.stages):
            raise ValueError(f"weights must be {len(self.stages)} numbers, one per stage, got {given}")
        self.weights = shares("weights", given)

    def _decide(self, domain: Domain) -> tuple[dict[str, float], str]:
        total = sum(self.weights)
        return {k: weight / total for k, weight in zip(self.stages, self.weights, strict=True)}, "constant mix"

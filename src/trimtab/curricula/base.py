"""What all stage schedulers share: domains, smoothed losses, logged decisions, state."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from trimtab.checks import number, whole

STAGES = ("easy", "medium", "hard")


@dataclass(frozen=True)
class Decision:
    """The shares of one domain in one epoch, and why.

    Attributes:
        epoch: counted from 0.
        domain: name of the domain.
        shares: stage -> share of the domain's draws; they sum to 1, or are all 0 when the domain sits the epoch out.
        losses: stage -> smoothed loss that the decision saw; None where the stage was never measured.
        reason: the decision in words.
    """

    epoch: int
    domain: str
    shares: dict[str, float]
    losses: dict[str, float | None]
    reason: str


@dataclass
class Domain:
    """What a scheduler remembers of one domain.

    Attributes:
        available: stages that have items, in the order of the stages.
        losses: smoothed loss of the stages that were measured; an unmeasured stage has no entry.
        measured: epoch in which a stage was last measured.
        sums: sum of losses and number of items of the running epoch.
        notes: numbers of the scheduler's own.
    """

    available: tuple[str, ...]
    losses: dict[str, float] = field(default_factory=dict)
    measured: dict[str, int] = field(default_factory=dict)
    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    notes: dict[str, float] = field(default_factory=dict)


class StageScheduler(abc.ABC):
    """A state machine that says, per domain, which share of the draws each stage gets in the coming epoch.

    The same calls in the same order give the same shares: no randomness, no clock, no device. An "epoch" is the time between
    two calls of `end_epoch`; the caller chooses its length.

    Args:
        stages: names of the stages from easy to hard, at least one, all different. Default easy, medium, hard.

    Attributes:
        stages: as given.
        epoch: the running epoch, from 0.
        decisions: every decision so far, in order.

    Raises:
        ValueError: no stage, or two of one name.
    """

    name = ""

    def __init__(self, stages: Sequence[str] = STAGES) -> None:
        self.stages = tuple(stages)
        if not self.stages or len(set(self.stages)) != len(self.stages):
            raise ValueError(f"stages must be one or more different names from easy to hard, got {self.stages}")
        self.epoch = 0
        self.decisions: list[Decision] = []
        self._domains: dict[str, Domain] = {}
        self._shares: dict[str, dict[str, float]] = {}

    @property
    def domains(self) -> tuple[str, ...]:
        """Names of the domains, in the order in which they were added."""
        return tuple(self._domains)

    def add_domain(self, domain: str, available: Sequence[str] | None = None) -> None:
        """Make a domain known and decide its shares of the running epoch. A known domain is left as it is.

        Args:
            domain: its name.
            available: stages that have items. Default all. The share of a stage without items goes to the others in proportion;
                where nothing is left, the domain sits the epoch out.

        Raises:
            ValueError: an unknown stage, no stage, or a known domain with other stages.
        """
        found = tuple(stage for stage in self.stages if available is None or stage in available)
        if available is not None and (unknown := sorted(set(available) - set(self.stages))):
            raise ValueError(f"domain {domain!r} has unknown stages {unknown}; stages are {', '.join(self.stages)}")
        if not found:
            raise ValueError(f"domain {domain!r} has no items in any of the stages {', '.join(self.stages)}")
        if domain in self._domains:
            if self._domains[domain].available != found:
                known = ", ".join(self._domains[domain].available)
                raise ValueError(f"domain {domain!r} is known with the stages {known}, got {', '.join(found)}")
            return
        self._domains[domain] = Domain(found)
        self._log(domain)

    def shares(self, domain: str) -> dict[str, float]:
        """Stage -> share of the domain's draws in the running epoch.

        Raises:
            ValueError: the domain was not added.
        """
        self._known(domain)
        return dict(self._shares[domain])

    def observe(self, domain: str, stage: str, loss: float, n: int = 1) -> None:
        """Count `n` items of this domain and stage whose mean loss was `loss`.

        Raises:
            ValueError: unknown domain or stage, n < 1, or a loss that is not finite.
        """
        found = self._known(domain)
        if stage not in found.available:
            raise ValueError(f"domain {domain!r} has no stage {stage!r}; it has {', '.join(found.available)}")
        whole("n", n, 1)
        loss = number(f"the loss of {domain!r}, stage {stage!r}, epoch {self.epoch}", loss)
        total, count = found.sums.get(stage, (0.0, 0))
        found.sums[stage] = (total + loss * n, count + n)

    def stale(self, domain: str) -> tuple[str, ...]:
        """Stages whose loss the next decision needs and which have none: measure a probe batch of each and `observe` it.

        Only schedulers that compare losses ask for probes.
        """
        self._known(domain)
        return ()

    def end_epoch(self) -> list[Decision]:
        """Take the observed losses into the smoothed ones, go to the next epoch, and decide it; returns the new decisions."""
        for domain in self._domains.values():
            for stage, (total, count) in domain.sums.items():
                self._smooth(domain, stage, total / count)
                domain.measured[stage] = self.epoch
        self._between()
        for domain in self._domains.values():
            domain.sums = {}
        self.epoch += 1
        before = len(self.decisions)
        for name in self._domains:
            self._log(name)
        return self.decisions[before:]

    @abc.abstractmethod
    def _decide(self, domain: Domain) -> tuple[dict[str, float], str]:
        """Shares of all stages, summing to 1, and the reason."""

    def _smooth(self, domain: Domain, stage: str, loss: float) -> None:
        """Take the mean loss of an epoch into the smoothed one; without a rule the last one counts."""
        domain.losses[stage] = loss

    def _between(self) -> None:  # noqa: B027
        """What happens once per epoch over all domains, before the decisions."""

    def _known(self, domain: str) -> Domain:
        if domain not in self._domains:
            raise ValueError(f"domain {domain!r} was not added; known are {', '.join(self._domains) or 'none'}")
        return self._domains[domain]

    def _log(self, name: str) -> None:
        domain = self._domains[name]
        wanted, reason = self._decide(domain)
        total = sum(wanted[stage] for stage in domain.available)
        missing = [stage for stage in self.stages if stage not in domain.available and wanted[stage] > 0]
        if missing:
            reason += f"; no items of {', '.join(missing)}" + ("" if total > 0 else ": the domain sits this epoch out")
        shares = {
            stage: wanted[stage] / total if total > 0 and stage in domain.available else 0.0 for stage in self.stages
        }
        self._shares[name] = shares
        losses = {stage: domain.losses.get(stage) for stage in self.stages}
        self.decisions.append(Decision(self.epoch, name, dict(shares), losses, reason))

    def _own_state(self) -> dict[str, Any]:
        return {}

    def _load_own_state(self, state: dict[str, Any]) -> None:  # noqa: B027
        pass

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs: numbers, strings, lists and dicts only, so JSON and `weights_only=True` carry it."""
        domains = {
            name: {**asdict(one), "available": list(one.available), "sums": {k: list(v) for k, v in one.sums.items()}}
            for name, one in self._domains.items()
        }
        return {
            "name": self.name,
            "stages": list(self.stages),
            "epoch": self.epoch,
            "domains": domains,
            "shares": {name: dict(shares) for name, shares in self._shares.items()},
            "decisions": [asdict(one) for one in self.decisions],
            "own": self._own_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken.

        Raises:
            ValueError: the state is of another scheduler or of other stages.
        """
        if (state["name"], tuple(state["stages"])) != (self.name, self.stages):
            raise ValueError(
                f"the state is of {state['name']!r} with stages {', '.join(state['stages'])}; "
                f"this is {self.name!r} with {', '.join(self.stages)}"
            )
        self.epoch = int(state["epoch"])
        self._domains = {
            name: Domain(
                tuple(one["available"]),
                dict(one["losses"]),
                dict(one["measured"]),
                {stage: (float(total), int(count)) for stage, (total, count) in one["sums"].items()},
                dict(one["notes"]),
            )
            for name, one in state["domains"].items()
        }
        self._shares = {name: dict(shares) for name, shares in state["shares"].items()}
        self.decisions = [Decision(**one) for one in state["decisions"]]
        self._load_own_state(state["own"])

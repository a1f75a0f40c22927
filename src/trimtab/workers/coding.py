"""Gradient coding over several rounds: how much each worker must compute so that slow ones need not be waited for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from trimtab.checks import non_negative, number, positive, whole


@dataclass(frozen=True)
class Scheme:
    """One way to code.

    Attributes:
        name: "uncoded", "gradient coding", "selective repetition" or "multiplexed".
        load: part of the data that each worker computes in a round.
        delay: rounds after which a gradient is there at the latest.
        stragglers: in a round, that its code bears by itself; 0 where repetition makes up for them.
    """

    name: str
    load: float
    delay: int
    stragglers: int


def coding_plan(n: int, B: int, W: int, lam: int) -> tuple[Scheme, ...]:
    """Loads and delays of sequential gradient coding, with uncoded and plain gradient coding beside them.

    Made for bursts: in any W rounds in a row at most lam different workers are slow, each within B rounds in a row.

    * gradient coding: load `(lam + 1) / n`, no delay;
    * selective repetition (SR-SGC): `s = ceil(B lam / (W - 1 + B))`, load `(s + 1) / n`, delay B;
    * multiplexed (M-SGC): load `(lam + 1)(W - 1 + B) / (n (B + (W - 1)(lam + 1)))`, delay `W - 2 + B`.

    Args:
        n: workers.
        B: longest burst, 1 or more.
        W: window, greater than B; for selective repetition W - 1 must be a multiple of B.
        lam: different slow workers in a window, fewer than n.

    Returns:
        the schemes that exist for these numbers, uncoded first.

    Raises:
        ValueError: a number is out of range.

    Reference: Krishnan et al., Sequential Gradient Coding, arXiv 2211.13802.

    Example:
        >>> [round(scheme.load, 4) for scheme in coding_plan(n=256, B=1, W=2, lam=27)]
        [0.0039, 0.1094, 0.0586, 0.0075]
    """
    whole("n", n, least=2)
    whole("B", B, least=1)
    whole("W", W, least=B + 1)
    whole("lam", lam, 0, n - 1)
    found = [Scheme("uncoded", 1 / n, 0, 0), Scheme("gradient coding", (lam + 1) / n, 0, lam)]
    if (W - 1) % B == 0:
        s = math.ceil(B * lam / (W - 1 + B))
        found.append(Scheme("selective repetition", (s + 1) / n, B, s))
    load = (lam + 1) * (W - 1 + B) / (n * (B + (W - 1) * (lam + 1)))
    found.append(Scheme("multiplexed", load, W - 2 + B, 0))
    return tuple(found)


def bursty(slow: Sequence[frozenset[int]], B: int, W: int, lam: int) -> bool:
    """Whether rounds with these slow workers fit the model: in the last W at most lam different ones, each within B rounds.

    Example:
        >>> bursty([frozenset({1}), frozenset({1, 2})], B=1, W=2, lam=2)  # worker 1 twice
        False
    """
    window = slow[-W:]
    workers = frozenset().union(*window)
    if len(workers) > lam:
        return False
    for worker in workers:
        rounds = [at for at, some in enumerate(window) if worker in some]
        if rounds[-1] - rounds[0] + 1 > B:
            return False
    return True


@dataclass(frozen=True)
class StragglerModel:
    """How slow workers come and go: each is fast or slow, and changes between rounds (Gilbert and Elliott).

    Attributes:
        start: chance that a fast worker becomes slow, in [0, 1).
        recover: chance that a slow one becomes fast, in (0, 1].
        slowdown: factor on the time of a slow one; 1 or more.
        fixed: time of a round that does not depend on the load.
        unit: time for all of the data on one worker.
        jitter: deviation of the logarithm of every time.

    Raises:
        ValueError: a value is out of range.
    """

    start: float = 0.02
    recover: float = 0.6
    slowdown: float = 6.0
    fixed: float = 1.0
    unit: float = 20.0
    jitter: float = 0.05

    def __post_init__(self) -> None:
        number("start", self.start, least=0, below=1)
        number("recover", self.recover, above=0, most=1)
        number("slowdown", self.slowdown, least=1)
        positive("fixed", self.fixed)
        positive("unit", self.unit)
        non_negative("jitter", self.jitter)

    def factors(self, rounds: int, n: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """Factor on the time of every worker in every round, (rounds, n)."""
        generator = np.random.default_rng(seed)
        slow = generator.random(n) < self.start / (self.start + self.recover)
        found = np.empty((rounds, n))
        for row in found:
            row[:] = np.where(slow, self.slowdown, 1.0) * np.exp(self.jitter * generator.standard_normal(n))
            change = generator.random(n)
            slow = np.where(slow, change >= self.recover, change < self.start)
        return found


def simulate_stragglers(
    n: int,
    B: int,
    W: int,
    lam: int,
    jobs: int = 200,
    *,
    model: StragglerModel | None = None,
    patience: float = 0.5,
    seed: int = 0,
) -> dict[str, float]:
    """Time that each scheme of `coding_plan` needs for so many gradients, under the same slow workers.

    In every round the master waits `1 + patience` times as long as for the fastest; who is later counts as slow, and where
    that is more than the scheme bears it waits for the next ones, one by one,
    until it bears the rest. Rounds: the jobs and the scheme's delay.

    Args:
        n, B, W, lam: of the codes.
        jobs: gradients. Default 200.
        model: of the slow workers.
        patience: above 0. Default 0.5 [ours].
        seed: of the slow workers.

    Returns:
        for each scheme its time.

    Raises:
        ValueError: a value is out of range.

    Gradient coding bears lam in each round; selective repetition has who was slow do it again B rounds later, and waits for
    those; multiplexing bears what is `bursty`. It is a simulation of waiting, not of codes: what is decoded from which results
    is the paper's, and no worker computes anything.

    Example:
        >>> times = simulate_stragglers(n=32, B=1, W=2, lam=4, jobs=50)
        >>> times["uncoded"] > times["multiplexed"]
        True
    """
    model = StragglerModel() if model is None else model
    positive("patience", patience)
    plan = coding_plan(n, B, W, lam)
    factors = model.factors(whole("jobs", jobs, least=1) + max(scheme.delay for scheme in plan), n, seed)
    found = {}
    for scheme in plan:
        times = (model.fixed + model.unit * scheme.load) * factors[: jobs + scheme.delay]
        found[scheme.name] = _waited(times, patience, _bears(scheme, n, B, W, lam))
    return found


Bears = Callable[[list[frozenset[int]]], bool]
"""Whether a scheme can go on, given the slow workers of all rounds so far."""


def _bears(scheme: Scheme, n: int, B: int, W: int, lam: int) -> Bears:
    if scheme.name == "selective repetition":
        return _Repetition(n, B, scheme.stragglers)
    if scheme.name == "multiplexed":
        return lambda slow: bursty(slow, B, W, lam)
    most = scheme.stragglers
    return lambda slow: len(slow[-1]) <= most


class _Repetition:
    """Selective repetition: who was slow at a gradient that is still short of n - s results does it again B rounds later."""

    def __init__(self, n: int, B: int, s: int) -> None:
        self.n, self.B, self.enough = n, B, n - s
        self.repeating: list[frozenset[int]] = []
        self.results: list[int] = []

    def __call__(self, slow: list[frozenset[int]]) -> bool:
        at = len(slow) - 1
        if at == len(self.repeating):
            self.repeating.append(self._short(at - self.B, slow) if at >= self.B else frozenset())
            self.results.append(0)
        own = frozenset(range(self.n)) - self.repeating[at]
        self.results[at] = len(own - slow[at])
        return not self.repeating[at] & slow[at]  # as many repeat as are needed, so all must be done

    def _short(self, job: int, slow: list[frozenset[int]]) -> frozenset[int]:
        missing = self.repeating[job] | slow[job]
        return frozenset(sorted(missing)[: max(0, self.enough - self.results[job])])


def _waited(
    times: np.ndarray[tuple[int, int], np.dtype[np.float64]],
    patience: float,
    bears: Bears,
) -> float:
    slow: list[frozenset[int]] = []
    total = 0.0
    for row in times:
        end = float(row.min()) * (1 + patience)
        late = sorted((float(row[worker]), worker) for worker in np.flatnonzero(row > end).tolist())
        slow.append(frozenset(worker for _, worker in late))
        while not bears(slow) and late:
            end, _ = late.pop(0)
            slow[-1] = frozenset(worker for _, worker in late)
        total += min(end, float(row.max()))
    return total

"""Means with bootstrap intervals, over all questions and by stage, domain and kind."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trimtab.medclm.evaluation.questions import Question

RESAMPLES = 1000


@dataclass(frozen=True)
class Measured:
    """One rule on one group of questions.

    Attributes:
        group, name: "all", "stage", "domain" or "kind", and which.
        rule: its id.
        n: questions that it applies to.
        value: mean.
        low, high: 95 % percentile bootstrap over patients; None with fewer than two patients.
    """

    group: str
    name: str
    rule: str
    n: int
    value: float
    low: float | None
    high: float | None


def interval(
    values: Sequence[float], clusters: Sequence[str], seed: int = 0, over: Sequence[float] | None = None
) -> tuple[float | None, float | None]:
    """95 % percentile interval of the mean, whole clusters drawn with replacement, 1,000 times.

    Args:
        values: one for each question.
        clusters: whose it is.
        seed: of the draws.
        over: what their sum is divided by the sum of, one for each question; by default each counts one. Draws where that is
            0 have no value and are left out.

    Example:
        >>> interval([1.0, 1.0, 1.0], ["a", "b", "c"])
        (1.0, 1.0)
        >>> interval([1.0, 0.0], ["a", "a"])          # one patient: nothing to draw
        (None, None)
    """
    names = {name: place for place, name in enumerate(dict.fromkeys(clusters))}
    if len(names) < 2:
        return None, None
    sums, counts = np.zeros(len(names)), np.zeros(len(names))
    for value, cluster, weight in zip(values, clusters, over or [1.0] * len(values), strict=True):
        sums[names[cluster]] += value
        counts[names[cluster]] += weight
    drawn = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    divisors = drawn @ counts
    means = (drawn @ sums)[divisors != 0] / divisors[divisors != 0]
    if not means.size:
        return None, None
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def measured(questions: Sequence[Question], found: Sequence[Mapping[str, float]], seed: int = 0) -> list[Measured]:
    """Every rule on every group, in a fixed order."""
    groups: dict[tuple[str, str, str], list[tuple[float, str]]] = defaultdict(list)
    for question, one in zip(questions, found, strict=True):
        names = (("all", "all"), ("stage", question.stage), ("domain", question.domain), ("kind", question.kind))
        for group, name in names:
            if name:
                for rule, value in one.items():
                    groups[group, name, rule].append((value, question.cluster))
    rows = []
    for (group, name, rule), pairs in groups.items():
        values, clusters = [value for value, _ in pairs], [cluster for _, cluster in pairs]
        low, high = interval(values, clusters, seed)
        rows.append(Measured(group, name, rule, len(values), sum(values) / len(values), low, high))
    return rows


def as_dicts(rows: Sequence[Measured]) -> list[dict[str, Any]]:
    """For JSON."""
    return [asdict(row) for row in rows]

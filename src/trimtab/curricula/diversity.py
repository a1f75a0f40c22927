"""How unlike the answers to one question are, in [0, 1]."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from itertools import combinations

from trimtab.checks import whole

Answer = Sequence[Hashable]
"""A text, or a list of words or tokens."""


def _checked(answers: Sequence[Answer], least: int = 2) -> None:
    if isinstance(answers, str) or len(answers) < least:
        raise ValueError(f"diversity is of {least} answers or more to one question, got {answers!r}")


def edit_diversity(answers: Sequence[Answer]) -> float:
    """Mean edit distance between pairs of answers, each over the longer of the two.

    Over the longer one [ours], so that it lies in [0, 1]; the code of VAS takes the distance as it is.

    Raises:
        ValueError: fewer than two answers.

    Example:
        >>> edit_diversity(["abcd", "abxd"])
        0.25
    """
    _checked(answers)
    pairs = [(one, other) for one, other in combinations(answers, 2)]
    return sum(_edits(one, other) / (max(len(one), len(other)) or 1) for one, other in pairs) / len(pairs)


def _edits(one: Answer, other: Answer) -> int:
    """Insertions, deletions and replacements that make one of the other."""
    row = list(range(len(other) + 1))
    for at, item in enumerate(one, 1):
        before, row[0] = row[0], at
        for place, wanted in enumerate(other, 1):
            before, row[place] = row[place], min(row[place] + 1, row[place - 1] + 1, before + (item != wanted))
    return row[-1]


def _grams(answer: Answer, n: int) -> list[tuple[Hashable, ...]]:
    return [tuple(answer[at : at + n]) for at in range(len(answer) - n + 1)]


def distinct(answers: Sequence[Answer], n: int = 2) -> float:
    """Distinct-n: different runs of n items over all of them; 0 where there is none so long.

    Raises:
        ValueError: no answer, or n below 1.

    Example:
        >>> distinct(["ab", "ab", "cd"])
        0.6666666666666666
    """
    _checked(answers, 1)
    whole("n", n, least=1)
    every = [run for answer in answers for run in _grams(answer, n)]
    return len(set(every)) / len(every) if every else 0.0


def self_bleu_diversity(answers: Sequence[Answer], n: int = 4) -> float:
    """1 - self-BLEU: the mean over answers of 1 less its BLEU, up to runs of n, against the others.

    Counts are clipped by the best other answer; one is added above and below from runs of two on (so that a missing run is
    not the end), and an answer shorter than the nearest other pays the brevity penalty.

    Raises:
        ValueError: fewer than two answers, or n below 1.

    Example:
        >>> self_bleu_diversity(["a b c d e".split(), "a b c d e".split()])
        0.0
    """
    _checked(answers)
    whole("n", n, least=1)
    scores = [_bleu(one, [*answers[:at], *answers[at + 1 :]], n) for at, one in enumerate(answers)]
    return 1 - sum(scores) / len(scores)


def _bleu(answer: Answer, others: Sequence[Answer], n: int) -> float:
    logs = []
    for size in range(1, n + 1):
        own = Counter(_grams(answer, size))
        most: Counter[tuple[Hashable, ...]] = Counter()
        for other in others:
            most |= Counter(_grams(other, size))
        hits, total, extra = (own & most).total(), own.total(), int(size > 1)
        if not hits + extra:
            return 0.0
        logs.append(math.log((hits + extra) / (total + extra)))
    nearest = min((len(other) for other in others), key=lambda length: (abs(length - len(answer)), length))
    brevity = min(0.0, 1 - nearest / len(answer)) if len(answer) else 0.0
    return math.exp(sum(logs) / n + brevity)

"""The baselines that see neither image nor model: the most common training answer, without and with the box's numbers."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable

from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.guessing import NearestBoxes

_NUMBERS = re.compile(r"\d+(?:\.\d+)?")


class Majority:
    """Answers with the most common training answer to the same question text (numbers left out), else to the same kind and
    domain, else to the same kind, else of all; ties go to the answer seen first.

    Args:
        training: questions of the training split.

    Raises:
        ValueError: there are none.

    Example:
        >>> from pathlib import Path
        >>> ask = lambda text, answer: Question("1", Path("x"), text, answer, "p", kind="side")
        >>> training = [ask("Which side?", "left"), ask("Which side?", "left"), ask("Which?", "right")]
        >>> Majority(training).answer(ask("Which side?", ""))
        'left'
    """

    def __init__(self, training: Iterable[Question]) -> None:
        self._seen: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for one in training:
            for key in _keys(one):
                self._seen[key][one.answer] += 1
        if not self._seen:
            raise ValueError("the majority baseline needs training questions, got none")

    def answer(self, question: Question) -> str:
        """The guess."""
        key = next(key for key in _keys(question) if key in self._seen)
        return self._seen[key].most_common(1)[0][0]


class WithBoxNumbers:
    """As `Majority`, but where the question quotes a box, the answer of the nearest boxes (`guessing.NearestBoxes`).

    Args:
        training: questions of the training split.
        majority: answers questions that quote none.
    """

    def __init__(self, training: Iterable[Question], majority: Majority) -> None:
        self._majority, self.nearest = majority, NearestBoxes()
        for one in training:
            self.nearest.add(one.stage, one.kind, one.domain, one.question, one.answer)

    def answer(self, question: Question) -> str:
        """The guess."""
        found = self.nearest.answer(question.stage, question.kind, question.domain, question.question)
        return self._majority.answer(question) if found is None else found


def _keys(question: Question) -> tuple[tuple[str, ...], ...]:
    text = _NUMBERS.sub("#", question.question.lower())
    return ("text", text), ("domain", question.kind, question.domain), ("kind", question.kind), ("all",)

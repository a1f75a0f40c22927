"""A guess from the text and the numbers of the box that it quotes: what a reader without eyes can know."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from trimtab.medclm.quality import says
from trimtab.medclm.texts.wording import boxes_in, regions, sought

NEIGHBOURS = 5
"""Boxes that vote (ours)."""
SYSTEM = "text with box numbers"
"""The name of this baseline in the card and in reports."""


class NearestBoxes:
    """Guesses the answer that most of the five nearest boxes of training questions of its like have.

    Distance: of the four numbers x0, y0, x1, y1, Euclidean. Its like: the same stage, question type, and class named in the
    question (none, where the question does not name the class that it is about). Ties go to the nearer box. Questions that
    quote no box are not guessed. State: four numbers for each training question that quotes a box.

    >>> guess = NearestBoxes()
    >>> for x, answer in ((0.1, "right"), (0.15, "right"), (0.7, "left"), (0.75, "left"), (0.8, "left")):
    ...     guess.add("easy", "side", "nodule x X-ray", f"Which side is [{x}, 0.2, {x + 0.1:.2f}, 0.3] on?", answer)
    >>> guess.answer("easy", "side", "nodule x X-ray", "Which side is [0.79, 0.2, 0.9, 0.3] on?")
    'left'
    """

    def __init__(self) -> None:
        self._boxes: dict[tuple[str, str, str], array[float]] = defaultdict(lambda: array("d"))
        self._answers: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self._trees: dict[tuple[str, str, str], Any] = {}

    def __bool__(self) -> bool:
        return bool(self._boxes)

    def add(self, stage: str, kind: str, domain: str, question: str, answer: str) -> None:
        """Remember a training question, if it quotes a box."""
        boxes = boxes_in(question)
        if boxes:
            like = _like(stage, kind, domain, question)
            self._boxes[like].extend(boxes[0])
            self._answers[like].append(answer)
            self._trees.pop(like, None)

    def answer(self, stage: str, kind: str, domain: str, question: str) -> str | None:
        """The guess; None where the question quotes no box or nothing of its like was asked."""
        boxes, like = boxes_in(question), _like(stage, kind, domain, question)
        if not boxes or like not in self._boxes:
            return None
        answers = self._answers[like]
        _, nearest = self._tree(like).query(boxes[0], k=min(NEIGHBOURS, len(answers)))
        return _voted([answers[place] for place in np.atleast_1d(nearest)])

    def _tree(self, like: tuple[str, str, str]) -> Any:
        if like not in self._trees:
            from scipy.spatial import KDTree

            self._trees[like] = KDTree(np.frombuffer(self._boxes[like], dtype=np.float64).reshape(-1, 4).copy())
        return self._trees[like]


def _voted(answers: Sequence[str]) -> str:
    """The most common answer; of equally common ones the first."""
    return Counter(answers).most_common(1)[0][0]


def _like(stage: str, kind: str, domain: str, question: str) -> tuple[str, str, str]:
    label = domain.rsplit(" x ", 1)[0]
    named = any(says(question, form) for form in {label, regions(label), sought(label)}) if label else False
    return stage, kind, label if named else ""

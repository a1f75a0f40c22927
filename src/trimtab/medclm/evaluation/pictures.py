"""The same questions with other pictures: what a model still answers then, it has not seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from trimtab.checks import one_of
from trimtab.medclm.evaluation.questions import Question

GREY = (128, 128, 128)
"""Of a blank picture."""


def with_pictures(questions: Sequence[Question], which: str) -> list[Question]:
    """The questions as they are ("own"), with pictures of other patients ("other"), or with even grey ones ("blank").

    "other": each gets the picture of another patient, drawn at random with a fixed seed. A real picture of the set tells as
    little as a blank one, and is no stranger to the model than those it was trained on. "blank": grey in the size of its own.
    Neither has a box drawn: it would show what the picture does not.

    Raises:
        ValueError: another word, or "other" where all questions are of one patient.
    """
    return _KINDS[one_of("which", which, _KINDS)](questions)


def _other(questions: Sequence[Question]) -> list[Question]:
    chance, found = random.Random(0), []
    if len({question.cluster for question in questions}) < 2:
        raise ValueError(
            f"all {len(questions)} questions are of one patient: no image of another one can be shown instead"
        )
    for question in questions:
        other = question
        while other.cluster == question.cluster:
            other = chance.choice(questions)
        found.append(replace(question, image=other.image, draw=False))
    return found


def _blank(questions: Sequence[Question]) -> list[Question]:
    return [replace(question, blank=True, draw=False) for question in questions]


_KINDS: dict[str, Callable[[Sequence[Question]], list[Question]]] = {"own": list, "other": _other, "blank": _blank}

"""The choices of a closed question, by its answer."""

from __future__ import annotations

YES_NO = ("yes", "no")
SIDES = ("left", "right")


def choices_of(answer: str, kind: str = "") -> tuple[str, ...]:
    """Choices of a closed question by its answer: yes and no, or (kind "side") left and right; else none.

    >>> choices_of("Yes"), choices_of("left", "side"), choices_of("left lung")
    (('yes', 'no'), ('left', 'right'), ())
    """
    word = answer.strip().lower()
    if word in YES_NO:
        return YES_NO
    return SIDES if kind == "side" and word in SIDES else ()

"""A model's reply taken apart: reasoning, answer, box."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANSWER = re.compile(r"\banswer\s*:", re.IGNORECASE)
_REASONING = re.compile(r"^\s*reasoning\s*:\s*", re.IGNORECASE)
_NUMBER = r"\s*(\d*\.?\d+)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_WORD = re.compile(r"\w+(?:[.'-]\w+)*")


@dataclass(frozen=True)
class Reply:
    """The parts of a reply.

    Attributes:
        reasoning: what stands before the last "Answer:", without its heading.
        answer: what stands after it; the whole reply where there is no such heading and no "Reasoning:".
        boxes: boxes quoted in the reasoning as [x0, y0, x1, y1] in 0-1 with x0 < x1 and y0 < y1, in order.
    """

    reasoning: str
    answer: str
    boxes: tuple[tuple[float, float, float, float], ...]


def parse_reply(text: str) -> Reply:
    """Rule `parse.1`: the answer follows the last "Answer:".

    Example:
        >>> parse_reply("Reasoning: seen at [0.1, 0.2, 0.5, 0.6]. So no. Answer: no")
        Reply(reasoning='seen at [0.1, 0.2, 0.5, 0.6]. So no.', answer='no', boxes=((0.1, 0.2, 0.5, 0.6),))
        >>> parse_reply("Reasoning: it goes on without end").answer
        ''
    """
    marks = list(_ANSWER.finditer(text))
    if marks:
        before, answer = text[: marks[-1].start()], text[marks[-1].end() :]
    elif _REASONING.match(text):
        before, answer = text, ""
    else:
        before, answer = "", text
    reasoning = _REASONING.sub("", before).strip()
    boxes = []
    for found in _BOX.finditer(reasoning):
        x0, y0, x1, y1 = (float(value) for value in found.groups())
        if x0 < x1 <= 1 and y0 < y1 <= 1:
            boxes.append((x0, y0, x1, y1))
    return Reply(reasoning, answer.strip(), tuple(boxes))


def words(text: str) -> list[str]:
    """Lower-case words and numbers, punctuation and articles left out.

    >>> words("The left, upper lobe (zone 1.5)!")
    ['left', 'upper', 'lobe', 'zone', '1.5']
    """
    return [word for word in _WORD.findall(text.lower()) if word not in {"a", "an", "the"}]


def contains(text: str, phrase: str) -> bool:
    """Whether the words of `phrase` stand in `text` next to each other, as whole words.

    >>> contains("a nodule", "no"), contains("No nodule.", "no")
    (False, True)
    """
    inside, wanted = words(text), words(phrase)
    return bool(wanted) and any(
        inside[place : place + len(wanted)] == wanted for place in range(len(inside) - len(wanted) + 1)
    )

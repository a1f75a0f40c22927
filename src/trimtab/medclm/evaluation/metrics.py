"""The rules, each with an id: closed and open answers, grounding, reasoning."""

from __future__ import annotations

import re
from collections import Counter

from trimtab.medclm.boxes.matching import iou, share_found
from trimtab.medclm.evaluation.parsing import Reply, contains, proper_boxes, words
from trimtab.medclm.evaluation.questions import Question

RULES = {
    "closed.1": "closed questions: the answer contains exactly one of the choices, as whole words, and it is the right one; "
    "where one choice stands inside another, the longer counts; a lone letter A, B, ... names a choice",
    "named.1": "closed questions without a list of choices, such as 'left or right?': the answer contains the right answer as "
    "whole words, and not also the word on the other side of an 'or' of the question",
    "exact.1": "open questions: the words are the same (lower case, without punctuation and articles)",
    "f1.1": "open questions: harmonic mean of precision and recall of the words, counted with multiplicity",
    "recall.1": "open questions: share of the right answer's words that the answer has",
    "boxes.1": "questions whose answer is boxes: intersection over union of the best pairing of the boxes said with the right "
    "ones, summed, divided by the larger number of the two; where there are none, 1 for naming none",
    "boxes50.1": "as boxes.1, each pair counting 1 with 0.5 or more, else 0",
    "box-given.1": "reasoning asked for and a box known: the reasoning quotes a box [x0, y0, x1, y1] in 0-1",
    "iou.1": "as box-given.1: intersection over union of the first box quoted with the gold box, 0 without one",
    "iou50.1": "as box-given.1: share with iou.1 of 0.5 or more",
    "organ.1": "reasoning asked for and the host organ known: reasoning or answer name it",
    "side.1": 'reasoning asked for and the side known: the reasoning names one "patient\'s left" or "right", the right one',
    "quotes.1": "as box-given.1: the first box quoted is the gold box to 0.001 in every corner",
    "agrees.1": "reasoning asked for: the last sentence of the reasoning contains the answer given",
}
"""Rule id -> what it measures. A changed rule gets a new number."""

_SIDE = re.compile(r"patient's (left|right)\b", re.IGNORECASE)


def closed(answer: str, question: Question) -> float:
    """Rule closed.1, 0 or 1."""
    said = chosen(answer, question)
    return float(len(said) == 1 and words(said[0]) == words(question.answer))


def chosen(answer: str, question: Question) -> list[str]:
    """The choices of a closed question that the answer names, in the question's order."""
    letter = re.fullmatch(r"\(?([A-Z])\)?[.:]?", answer.strip())
    if letter and (place := ord(letter[1]) - ord("A")) < len(question.choices) and len(question.choices) > 2:
        return [question.choices[place]]
    said = [choice for choice in question.choices if contains(answer, choice)]
    return [choice for choice in said if not any(choice != other and contains(other, choice) for other in said)]


def named(answer: str, question: Question) -> float:
    """Rule named.1, 0 or 1."""
    asked, right = words(question.question), words(question.answer)
    around = [(asked[at - 1], asked[at + 1]) for at in range(1, len(asked) - 1) if asked[at] == "or"]
    rivals = {other for one in around for mine, other in (one, one[::-1]) if mine in right and other not in right}
    return float(contains(answer, question.answer) and not any(contains(answer, rival) for rival in rivals))


def overlap(answer: str, gold: str) -> tuple[float, float]:
    """(f1.1, recall.1).

    >>> overlap("left lung", "left lower lobe")
    (0.4, 0.3333333333333333)
    """
    mine, right = words(answer), words(gold)
    common = (Counter(mine) & Counter(right)).total()
    if not common:
        return 0.0, 0.0
    return 2 * common / (len(mine) + len(right)), common / len(right)


def scores(question: Question, reply: Reply) -> dict[str, float]:
    """Rule id -> value in [0, 1], of the rules that apply to the question."""
    found: dict[str, float] = {}
    if question.answer_boxes is not None:
        said = proper_boxes(reply.answer)
        found["boxes.1"] = share_found(said, question.answer_boxes)
        found["boxes50.1"] = share_found(said, question.answer_boxes, least=0.5)
    elif question.choices:
        found["closed.1"] = closed(reply.answer, question)
    elif question.closed:
        found["named.1"] = named(reply.answer, question)
    else:
        found["exact.1"] = float(words(reply.answer) == words(question.answer))
        found["f1.1"], found["recall.1"] = overlap(reply.answer, question.answer)
    if not question.reason:
        return found
    if question.box is not None:
        gold = question.box.corners
        first = reply.boxes[0] if reply.boxes else None
        found["box-given.1"] = float(first is not None)
        found["iou.1"] = iou(first, gold) if first is not None else 0.0
        found["iou50.1"] = float(found["iou.1"] >= 0.5)
        found["quotes.1"] = float(
            first is not None and all(abs(a - b) <= 1e-3 for a, b in zip(first, gold, strict=True))
        )
    if question.organ is not None:
        found["organ.1"] = float(contains(f"{reply.reasoning} . {reply.answer}", question.organ))
    if question.side is not None:
        found["side.1"] = float({side.lower() for side in _SIDE.findall(reply.reasoning)} == {question.side})
    sentences = [part for part in re.split(r"(?<=[.!?])\s+", reply.reasoning) if part.strip()]
    found["agrees.1"] = float(bool(sentences) and contains(sentences[-1], reply.answer))
    return found

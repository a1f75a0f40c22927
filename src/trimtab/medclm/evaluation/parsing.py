"""A model's reply taken apart: reasoning, answer, box."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ANSWER = re.compile(r"\banswer\W{0,4}\s*:", re.IGNORECASE)
_HEADING = re.compile(r"\breasoning\W{0,4}\s*:", re.IGNORECASE)
_REASONING = re.compile(r"^\W*reasoning\W{0,4}\s*:[\s*_]*", re.IGNORECASE)
_THINKING = r"think|thinking|thought|reasoning|reason|analysis"
_THOUGHT = re.compile(rf"(?:<({_THINKING})>|◁think▷)(.*?)(?:</(?:{_THINKING})>|◁/think▷|$)", re.IGNORECASE | re.DOTALL)
_THOUGHT_END = re.compile(rf"^.*(?:</(?:{_THINKING})>|◁/think▷)", re.IGNORECASE | re.DOTALL)
_TAGGED = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.IGNORECASE | re.DOTALL)
_BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
_TAG = re.compile(rf"</?(?:{_THINKING})>|◁/?think▷", re.IGNORECASE)
_SPECIAL = re.compile(r"<\|[^|<>]*\|>|</?s>|<(?:eos|bos|pad|end_of_turn|end_of_utterance)>", re.IGNORECASE)
_NUMBER = r"\s*(\d*\.?\d+)\s*"
_BOX = re.compile(rf"\[{_NUMBER},{_NUMBER},{_NUMBER},{_NUMBER}\]")
_WORD = re.compile(r"\w+(?:[.'-]\w+)*")


@dataclass(frozen=True)
class Reply:
    """The parts of a reply.

    Attributes:
        reasoning: what stands before the last "Answer:" (or after "Reasoning:", where that follows it), without headings; what
            the model said between thinking tags where there is none.
        answer: the line that says the answer; the whole reply where nothing marks it and there is no "Reasoning:".
        boxes: boxes quoted in the reasoning as [x0, y0, x1, y1] in 0-1 with x0 < x1 and y0 < y1, in order.
    """

    reasoning: str
    answer: str
    boxes: tuple[tuple[float, float, float, float], ...]


def parse_reply(text: str) -> Reply:
    """Rule `parse.2`: thinking tags and special tokens are taken out; the answer is the first line after the last "Answer:",
    or what <answer> or \\boxed{} holds; without any of these the whole rest.

    An unclosed <think> never came to an answer.

    Example:
        >>> parse_reply("Reasoning: seen at [0.1, 0.2, 0.5, 0.6]. So no. Answer: no")
        Reply(reasoning='seen at [0.1, 0.2, 0.5, 0.6]. So no.', answer='no', boxes=((0.1, 0.2, 0.5, 0.6),))
        >>> parse_reply("Reasoning: it goes on without end").answer
        ''
        >>> parse_reply("<think>No? There is one, so...</think>\\n**Answer:** yes\\n\\nReasoning: no doubt.").answer
        'yes'
    """
    text = _SPECIAL.sub(" ", text)
    thoughts = " ".join(found[2].strip() for found in _THOUGHT.finditer(text))
    text = _THOUGHT.sub(" ", text)
    if end := _THOUGHT_END.match(text):  # the opening tag stood in the prompt
        thoughts, text = f"{thoughts} {_TAG.sub(' ', end[0])}".strip(), text[end.end() :]
    before, answer = _split(text)
    reasoning = _REASONING.sub("", before).strip("*_ \t\r\n") or thoughts
    return Reply(reasoning, answer, tuple(proper_boxes(reasoning)))


def proper_boxes(text: str) -> list[tuple[float, float, float, float]]:
    """Boxes that a text quotes as [x0, y0, x1, y1] in 0-1 with x0 < x1 and y0 < y1, in order.

    >>> proper_boxes("nodule [0.1, 0.2, 0.5, 0.6]; mass [1, 2, 3, 4]")
    [(0.1, 0.2, 0.5, 0.6)]
    """
    boxes = []
    for found in _BOX.finditer(text):
        x0, y0, x1, y1 = (float(value) for value in found.groups())
        if x0 < x1 <= 1 and y0 < y1 <= 1:
            boxes.append((x0, y0, x1, y1))
    return boxes


def _split(text: str) -> tuple[str, str]:
    """(reasoning, answer) of a reply without thinking tags."""
    tagged = list(_TAGGED.finditer(text))
    marks = list(_ANSWER.finditer(text))
    if tagged:
        before, answer = text[: tagged[-1].start()], tagged[-1][1]
    elif marks:
        before, rest = text[: marks[-1].start()], text[marks[-1].end() :]
        later = _HEADING.search(rest)
        if later:
            before, rest = rest[later.start() :], rest[: later.start()]
        answer = next((line for line in rest.splitlines() if line.strip("*_ \t")), "")
    elif _REASONING.match(text):
        before, answer = text, ""
    else:
        before, answer = "", text
    boxed = _BOXED.findall(answer) or ([] if tagged or marks else _BOXED.findall(text))
    return before, (boxed[-1] if boxed else answer).strip("*_ \t\r\n")


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

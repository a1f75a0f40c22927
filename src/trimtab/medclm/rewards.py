"""Rewards for reinforcement learning on rows of a built set: pure functions with the signature of TRL's GRPOTrainer.

Every reward is called as `reward(prompts, completions, **columns)` and returns one number in [0, 1] a completion, or None where
it does not apply to the row, which TRL leaves out. A completion is a text or a list of chat messages. The columns are those
that `trimtab medclm export SET --to grpo` writes:

| column | |
|---|---|
| `answer` | the right answer, boxes as fractions |
| `choices` | of a closed question, else [] |
| `reason` | whether the prompt asks for reasoning |
| `side` | the patient's side of the finding, "" where there is none |
| `boxes` | gold boxes, [x0, y0, x1, y1] as fractions; [] where there are none |
| `box_answer` | whether the answer is boxes (then they are looked for in the answer, else in the reasoning) |
| `box_format`, `seen` | how the model writes boxes (`boxes.FORMATS`), and the (width, height) it sees; fractions if not given |

Example:
    >>> said = ["Reasoning: seen at [0.1, 0.1, 0.3, 0.3]. So no. Answer: no", "yes"]
    >>> normalised([""] * 2, said, answer=["no", "no"])
    [1.0, 0.0]
    >>> iou_smooth([""] * 2, said, boxes=[[[0.1, 0.1, 0.3, 0.3]]] * 2, box_answer=[False] * 2)
    [1.0, 0.0]
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from trimtab.checks import number
from trimtab.medclm.boxes import format_named, share_found
from trimtab.medclm.boxes.forms import Corners
from trimtab.medclm.evaluation.metrics import closed
from trimtab.medclm.evaluation.parsing import Reply, contains, parse_reply, proper_boxes, words
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.texts.choices import SIDES
from trimtab.medclm.texts.wording import NO_BOX, boxes_in

Completion = str | Sequence[Mapping[str, Any]]
Rewards = list[float | None]
Reward = Callable[..., Rewards]

_SIDE = re.compile(r"\bpatient's (left|right)\b|\b(left|right) (?:eye|lung|side)\b", re.IGNORECASE)


def text_of(completion: Completion) -> str:
    """The text of a completion: a string, or the contents of the assistant's messages.

    Raises:
        TypeError: it is neither.
    """
    if isinstance(completion, str):
        return completion
    messages: list[Any] = list(completion) if isinstance(completion, Sequence) else [completion]
    if all(isinstance(one, Mapping) for one in messages):
        contents = [one.get("content") or "" for one in messages if one.get("role", "assistant") == "assistant"]
        parts = [[{"text": one}] if isinstance(one, str) else one for one in contents]
        return " ".join(str(piece.get("text") or "") for one in parts for piece in one)
    raise TypeError(f"a completion is a text or a list of messages, got {type(completion).__name__}")


def exact(
    prompts: Sequence[Any], completions: Sequence[Completion], *, answer: Sequence[str], **columns: Any
) -> Rewards:
    """1 where the answer given is the right one, letter for letter (surrounding space apart)."""
    return [
        float(one.answer.strip() == right.strip())
        for one, right in _each("answer", answer, completions, columns, "exact")
    ]


def normalised(
    prompts: Sequence[Any], completions: Sequence[Completion], *, answer: Sequence[str], **columns: Any
) -> Rewards:
    """1 where the answer has the words of the right one: lower case, without punctuation and articles (rule exact.1)."""
    return [
        float(words(one.answer) == words(right))
        for one, right in _each("answer", answer, completions, columns, "normalised")
    ]


def choice(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    answer: Sequence[str],
    choices: Sequence[Sequence[str] | None],
    **columns: Any,
) -> Rewards:
    """1 where the answer names exactly one of the choices and it is the right one (rule closed.1); None of open questions."""
    pairs = list(_each("answer", answer, completions, columns, "choice"))
    return [
        closed(one.answer, Question("", Path(), "", right, "", choices=tuple(given))) if given else None
        for (one, right), given in zip(pairs, _column("choices", choices, len(pairs), "choice"), strict=True)
    ]


def iou_smooth(
    prompts: Sequence[Any],
    completions: Sequence[Completion],
    *,
    boxes: Sequence[Sequence[Sequence[float]] | None],
    **columns: Any,
) -> Rewards:
    """(1 + generalised IoU) / 2 of the best pairing, summed and divided by the larger number of boxes said or asked for.

    Above 0 as soon as one box is well-formed, and higher the nearer it lies, so that there is something to learn from before
    any box touches the right one (arXiv 1902.09630; the scale is ours). Where there is no box to name: 1 for saying so.
    """
    return _grounded(completions, boxes, columns, "iou_smooth", "smooth")


def iou_at(threshold: float) -> Reward:
    """The reward that is the share of boxes found with an IoU of `threshold` or more, of the larger number said or asked for.

    Args:
        threshold: in (0, 1].

    >>> iou_at(0.5)([""], ["[0, 0, 1, 0.5]"], boxes=[[[0, 0, 1, 1]]], box_answer=[True])
    [1.0]
    """
    least = number("threshold", threshold, above=0, most=1)

    def reward(
        prompts: Sequence[Any],
        completions: Sequence[Completion],
        *,
        boxes: Sequence[Sequence[Sequence[float]] | None],
        **columns: Any,
    ) -> Rewards:
        return _grounded(completions, boxes, columns, reward.__name__, "iou", least)

    reward.__name__ = reward.__qualname__ = f"iou_at_{round(100 * least)}"
    return reward


iou50 = iou_at(0.5)
"""Acc@0.5 as a reward."""


def form(
    prompts: Sequence[Any], completions: Sequence[Completion], *, reason: Sequence[bool], **columns: Any
) -> Rewards:
    """Share of the parts of the form that are there [ours].

    They are an answer; reasoning where it is asked for, none where it is not; where the answer is boxes, a box that can be read
    or "none".
    """
    pairs = list(_each("reason", reason, completions, columns, "form"))
    asked = _column("box_answer", columns.get("box_answer"), len(pairs), "form", default=False)
    found: Rewards = []
    for (one, wanted), boxes in zip(pairs, asked, strict=True):
        parts = [bool(one.answer), bool(one.reasoning) == bool(wanted)]
        if boxes:
            parts.append(bool(boxes_in(one.answer)) or words(one.answer) == [NO_BOX])
        found.append(sum(parts) / len(parts))
    return found


def agreement(
    prompts: Sequence[Any], completions: Sequence[Completion], *, reason: Sequence[bool], **columns: Any
) -> Rewards:
    """1 where the last sentence of the reasoning contains the answer given (rule agrees.1), right or wrong; None without
    reasoning asked for."""
    return [
        _agrees(one) if wanted else None for one, wanted in _each("reason", reason, completions, columns, "agreement")
    ]


def side(
    prompts: Sequence[Any], completions: Sequence[Completion], *, side: Sequence[str | None], **columns: Any
) -> Rewards:
    """1 where the sides that the reply names are the right one alone; None where the finding has no side."""
    found: Rewards = []
    for one, right in _each("side", side, completions, columns, "side"):
        if right not in SIDES:
            found.append(None)
            continue
        said = {(first or second).lower() for first, second in _SIDE.findall(f"{one.reasoning} . {one.answer}")}
        said |= {name for name in SIDES if words(one.answer) == [name]}
        found.append(float(said == {right}))
    return found


REWARDS: dict[str, Reward] = {
    "exact": exact, "normalised": normalised, "choice": choice, "iou_smooth": iou_smooth, "iou50": iou50, "form": form,
    "agreement": agreement, "side": side,
}  # fmt: skip
"""Name -> reward."""


def _agrees(reply: Reply) -> float:
    last = re.split(r"(?<=[.!?])\s+", reply.reasoning.strip())[-1]
    if said := boxes_in(reply.answer):
        return float(boxes_in(last) == said)
    return float(bool(last) and contains(last, reply.answer))


def _grounded(
    completions: Sequence[Completion],
    boxes: Any,
    columns: Mapping[str, Any],
    name: str,
    score: str,
    least: float | None = None,
) -> Rewards:
    pairs = list(_each("boxes", boxes, completions, columns, name))
    answers = _column("box_answer", columns.get("box_answer"), len(pairs), name, default=False)
    found: Rewards = []
    for (reply, gold), in_answer in zip(pairs, answers, strict=True):
        wanted: list[Corners] = [tuple(float(value) for value in box) for box in gold or ()]  # type: ignore[misc]
        if not wanted and not in_answer:
            found.append(None)
            continue
        said = proper_boxes(reply.answer) if in_answer else list(reply.boxes[: len(wanted)])
        denied = bool(wanted) or words(reply.answer) == [NO_BOX]
        found.append(share_found(said, wanted, score, least) if denied else 0.0)
    return found


def _each(
    what: str, given: Any, completions: Sequence[Completion], columns: Mapping[str, Any], name: str
) -> list[tuple[Reply, Any]]:
    """(reply with its boxes as fractions, value of the column) of each completion."""
    number_of = len(completions)
    values = _column(what, given, number_of, name)
    formats = _column("box_format", columns.get("box_format"), number_of, name, default="unit")
    sizes = _column("seen", columns.get("seen"), number_of, name, default=(1, 1))
    found = []
    for completion, value, form_name, size in zip(completions, values, formats, sizes, strict=True):
        text = text_of(completion)
        if form_name not in (None, "unit"):
            text = format_named(form_name).in_fractions(text, (int(size[0]), int(size[1])))
        found.append((parse_reply(text), value))
    return found


def _column(what: str, given: Any, number_of: int, name: str, default: Any = None) -> Sequence[Any]:
    if given is None and default is not None:
        return [default] * number_of
    if given is None or isinstance(given, str) or len(given) != number_of:
        got = "none" if given is None else f"{given!r}" if isinstance(given, str) else f"{len(given)}"
        raise ValueError(f"reward {name} needs a column {what!r} of {number_of} values, one a completion; got {got}")
    return list(given)

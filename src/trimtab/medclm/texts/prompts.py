"""What a model is asked: a question with a word on the form of the reply, the same for the trainer and every export."""

from __future__ import annotations

from collections.abc import Sequence

from trimtab.medclm.records import Row

ANSWER_ONLY = "Answer only."
REASON_FIRST = "Reason first, then answer."


def instruction(question: str, *, reason: bool) -> str:
    """The question with a word on the form of the reply (ours): the question does not show whether reasoning is wanted.

    >>> instruction("Is there a nodule?", reason=False)
    'Is there a nodule? Answer only.'
    """
    return f"{question} {REASON_FIRST if reason else ANSWER_ONLY}"


def explained(question: str, choices: Sequence[str] = (), *, reason: bool, boxes: str = "", answer: str = "") -> str:
    """The question with the form of the reply spelled out (ours), for a model that was not trained on `instruction`.

    Args:
        question: its text.
        choices: the answers to choose from, none for an open question.
        reason: whether reasoning is asked for.
        boxes: how that shall quote the place it speaks of, "" for not at all.
        answer: what the answer is, by default one of the choices or a few words.

    >>> print(explained("Is there a nodule?", ("yes", "no"), reason=False))
    Is there a nodule?
    Reply with one line, "Answer: " and one of: yes, no.
    """
    said = answer or (f"one of: {', '.join(choices)}" if choices else "the answer in a few words")
    if not reason:
        return f'{question}\nReply with one line, "Answer: " and {said}.'
    place = f" Give the box of what you speak of: {boxes}." if boxes else ""
    first = f"First say in two to six sentences what you see that decides it.{place}"
    return f'{question}\n{first}\nThen end with one line, "Answer: " and {said}.'


def prompt_of(row: Row) -> str:
    """The prompt of a row: rows without reasoning (Hard) want the answer only."""
    return instruction(row.question, reason=bool(row.reasoning))

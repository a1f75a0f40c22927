"""What a model is asked: a question with a word on the form of the reply, the same for the trainer and every export."""

from __future__ import annotations

from trimtab.medclm.records import Row

ANSWER_ONLY = "Answer only."
REASON_FIRST = "Reason first, then answer."


def instruction(question: str, *, reason: bool) -> str:
    """The question with a word on the form of the reply (ours): the question does not show whether reasoning is wanted.

    >>> instruction("Is there a nodule?", reason=False)
    'Is there a nodule? Answer only.'
    """
    return f"{question} {REASON_FIRST if reason else ANSWER_ONLY}"


def prompt_of(row: Row) -> str:
    """The prompt of a row: rows without reasoning (Hard) want the answer only."""
    return instruction(row.question, reason=bool(row.reasoning))

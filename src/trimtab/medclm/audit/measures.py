"""What an audit measures beside the rules of an evaluation: does the answer hang on the picture?

With a question's replies on its own image (real), on one of another patient (shuffled) and on an even grey one (blank), c the
score of the right answer and a the answer given (arXiv 2603.03437 and its authors' account of it):

    VRS  = mean c(real) - c(shuffled)                           Visual Reliance Score
    IS   = mean [a(real) != a(shuffled)]                        Image Sensitivity
    HVRR = mean [claims to see in real, a(real) = a(shuffled)]  Hallucinated Visual Reasoning Rate, of all reasoned replies

What counts as the same answer and as a claim to see is not said there; both rules are ours.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from trimtab.medclm.evaluation.metrics import chosen, scores
from trimtab.medclm.evaluation.parsing import Reply, words
from trimtab.medclm.evaluation.questions import SIDES, Question
from trimtab.medclm.evaluation.tables import Measured, interval

ANSWERS = {
    "accuracy.1": "all questions: closed.1 or named.1 of closed ones, exact.1 of open ones, boxes50.1 of box answers",
    "lateral.1": "the right answer names one side: the answer names it, and not the other",
    "mirrored.1": "the right answer names one side: the answer names the other, and not the right one",
}
"""Rules of a single reply, beside those of `evaluation.metrics`."""
CORRECT = ("closed.1", "named.1", "exact.1", "boxes50.1")
"""Of these rules each question has one, and that is its accuracy.1."""
MEASURES = {
    "vrs.1": "Visual Reliance Score: accuracy.1 on the real image minus that on another patient's, question by question",
    "is.1": "Image Sensitivity: share of questions whose answer is another one on another patient's image; an answer is the "
    "choices it names, else its words",
    "blank-is.1": "as is.1, on a blank image",
    "kept.1": "accuracy.1 on blank images divided by that on real ones",
    "claims.1": "reasoning asked for: share of replies on the real image that claim to see something: a box is quoted, or a "
    "sentence has a word of seeing (shows, visible, appears, at the left ...) and does not say that nothing can be seen",
    "hvrr.1": "Hallucinated Visual Reasoning Rate: reasoning asked for: share of replies that claim to see (claims.1) and give "
    "the same answer on another patient's image",
    "ungrounded.1": "as hvrr.1, of the replies that claim to see",
}
"""Rules of a question's replies to several pictures."""

_SEEING = re.compile(
    r"\b(see|sees|seen|visible|visuali[sz]ed?|visuali[sz]ation|shows?|showing|shown|appears?|appearing|demonstrat(es?|ed|ing)|"
    r"depict(s|ed|ing)?|reveal(s|ed|ing)?|observ(e|es|ed|ing)|noted|evident|looking|stands? out|lies|located|marked|"
    r"(at|on|in|to) the (patient's )?(left|right|upper|lower))\b",
    re.IGNORECASE,
)
_BLIND = re.compile(
    r"\b(can(not|'t| not)|unable to|not able to|impossible to|could not|couldn't) (\w+ ){0,2}"
    r"(see|view|access|tell|determine|assess)|"
    r"\bno (image|picture|scan)\b|\b(image|picture|scan) (is|was) (not|blank|missing|grey|gray|empty)\b",
    re.IGNORECASE,
)


def claims_to_see(reply: Reply) -> bool:
    """Whether the reasoning says something about what is in the picture.

    >>> claims_to_see(Reply("There is a dense area seen at the base.", "yes", ()))
    True
    >>> claims_to_see(Reply("I cannot see the image. Such questions are mostly true.", "yes", ()))
    False
    """
    if reply.boxes:
        return True
    sentences = re.split(r"(?<=[.!?])\s+", reply.reasoning)
    return any(_SEEING.search(one) and not _BLIND.search(one) for one in sentences)


def position(answer: str, question: Question) -> tuple[str, ...]:
    """What an answer comes to, to be compared: the choices it names, else its words.

    >>> from pathlib import Path
    >>> closed = Question("1", Path("x"), "Is it?", "yes", "p", choices=("yes", "no"))
    >>> position("Yes, there is.", closed) == position("yes", closed)
    True
    """
    return tuple(chosen(answer, question) or words(answer))


def replied(question: Question, reply: Reply) -> dict[str, float]:
    """Every rule of one reply: those of an evaluation, and `ANSWERS`."""
    found = scores(question, reply)
    found = {"accuracy.1": next(found[rule] for rule in CORRECT if rule in found), **found}
    right = [side for side in SIDES if side in words(question.answer)]
    if len(right) == 1:
        said = [side for side in SIDES if side in words(reply.answer)]
        found["lateral.1"] = float(said == right)
        found["mirrored.1"] = float(len(said) == 1 and said != right)
    return found


def compared(
    question: Question, replies: Mapping[str, Reply], found: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    """The `MEASURES` of one question but kept.1, which is one of all questions.

    Args:
        question: what was asked.
        replies: by condition: "real", "shuffled", "blank".
        found: `replied` of each.
    """
    answers = {name: position(reply.answer, question) for name, reply in replies.items()}
    changed = answers["real"] != answers["shuffled"]
    measures = {
        "vrs.1": found["real"]["accuracy.1"] - found["shuffled"]["accuracy.1"],
        "is.1": float(changed),
        "blank-is.1": float(answers["real"] != answers["blank"]),
    }
    if question.reason:
        claims = claims_to_see(replies["real"])
        measures |= {"claims.1": float(claims), "hvrr.1": float(claims and not changed)}
        if claims:
            measures["ungrounded.1"] = float(not changed)
    return measures


def kept(questions: Sequence[Question], real: Sequence[float], blank: Sequence[float]) -> list[Measured]:
    """kept.1 over all questions; none where not one real answer is right."""
    if not any(real):
        return []
    low, high = interval(blank, [one.cluster for one in questions], over=real)
    return [Measured("all", "all", "kept.1", len(questions), sum(blank) / sum(real), low, high)]


def value(rows: Sequence[Mapping[str, Any]], rule: str) -> Mapping[str, Any] | None:
    """The row of a rule over all questions."""
    return next((row for row in rows if (row["group"], row["rule"]) == ("all", rule)), None)


def claim(summary: Mapping[str, Any]) -> str:
    """Whether the answers hang on the pictures: the 95 % interval of the Visual Reliance Score, drawn by patient, lies above 0.

    Args:
        summary: what `audit.json` holds.
    """
    vrs = value(summary["measures"], "vrs.1")
    looks = vrs is not None and vrs["low"] is not None and vrs["low"] > 0
    return "The answers hang on the pictures" if looks else "The answers are not shown to hang on the pictures"


def verdict(summary: Mapping[str, Any]) -> str:
    """`claim` with its figures."""
    shares = {name: value(one["rows"], "accuracy.1") for name, one in summary["systems"].items()}
    words_of = {
        "real": f"of {summary['n']:,} questions right", "shuffled": "with images of other patients", "blank": "on blank ones",
        "majority": "by the majority guess",
    }  # fmt: skip
    parts = [f"{100 * row['value']:.1f} % {words_of[name]}" for name, row in shares.items() if row is not None]
    text = f"{claim(summary)}: {', '.join(parts)}"
    for rule, name in (("vrs.1", "Visual Reliance Score"), ("is.1", "Image Sensitivity")):
        row = value(summary["measures"], rule)
        if row is not None:
            bounds = "" if row["low"] is None else f" ({100 * row['low']:.0f} to {100 * row['high']:.0f})"
            text += f"; {name} {100 * row['value']:{'+' if rule == 'vrs.1' else ''}.1f}{bounds}"
    rate = value(summary["measures"], "hvrr.1")
    if rate is not None:
        text += f"; {100 * rate['value']:.0f} % of replies claim to see and answer alike whatever the picture"
    return f"{text}."

"""`audit`: every question on three pictures, each reply kept as it comes, then all measures at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trimtab.medclm.audit.asking import Watch, asked
from trimtab.medclm.audit.measures import ANSWERS, MEASURES, compared, kept, replied
from trimtab.medclm.audit.options import AuditOptions
from trimtab.medclm.audit.requests import Keys, Request
from trimtab.medclm.audit.subjects import Subject
from trimtab.medclm.evaluation.evaluate import OPEN_AND_CLOSED, Evaluation, predicted
from trimtab.medclm.evaluation.majority import Majority
from trimtab.medclm.evaluation.metrics import RULES
from trimtab.medclm.evaluation.parsing import Reply, parse_reply
from trimtab.medclm.evaluation.pictures import with_pictures
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.evaluation.tables import as_dicts, measured
from trimtab.medclm.texts import replies as texts

FILE = "audit.json"
CONDITIONS = {"real": "own", "shuffled": "other", "blank": "blank"}
"""What an audit calls the pictures, and what `with_pictures` calls them."""
WHAT = {
    "real": "the question with its own image",
    "shuffled": "the same question with an image of another patient of the set",
    "blank": "the same question with an even grey image",
    "majority": "no model: the most common training answer to such a question",
}


def audit(
    subject: Subject,
    questions: Sequence[Question],
    cache: Path,
    options: AuditOptions | None = None,
    training: Sequence[Question] = (),
    progress: Callable[[str, int], None] | None = None,
) -> Evaluation:
    """Ask everything that is not in the cache, and measure.

    Args:
        subject: the model.
        questions: of one set; all of them, so that a smaller `limit` shows the same pictures.
        cache: folder of replies, filled as they come: what is in it is not asked again.
        options: how is asked.
        training: for the majority guess; empty leaves it out.
        progress: called with (condition, questions done).

    Returns:
        Summary: systems ("real", "shuffled", "blank", "majority") with their rows, `measures`, `rules`, `left_out` (what is
        not measured, with the reason), `failed` (questions that the model could not be asked, with the reason), `replies` (how
        many were cut off, refused, empty; tokens). Predictions with the replies on each picture.

    Raises:
        ValueError: no questions, all of one patient, a server that does not reply, or replies without any box where boxes
            were asked for.
    """
    options = options or AuditOptions()
    questions = _asked(questions, options)
    shown = {name: with_pictures(questions, which) for name, which in CONDITIONS.items()}
    places = _places(questions, options)
    said: dict[str, dict[int, texts.Reply]] = {}
    failed: dict[str, str] = {}
    for name, requests in _requests(subject.identity, shown, places, options).items():
        watch = Watch(options, on=name == "real")
        tell = None if progress is None else partial(progress, name)
        said[name] = asked(subject, requests, texts.ReplyCache(cache), watch, failed, tell)
    whole = [place for place in places if all(place in ones for ones in said.values())]
    if not whole:
        raise ValueError(f"not one question was answered on all three pictures; {len(failed)} failed: {failed}")
    chosen = [options.question(questions[place]) for place in whole]
    answers = {name: [said[name][place] for place in whole] for name in said}
    spoken = {name: [options.read(shown[name][place], said[name][place]) for place in whole] for name in said}
    return measured_audit(chosen, answers, spoken, training, failed)


def requests_of(
    identity: Mapping[str, Any], questions: Sequence[Question], options: AuditOptions
) -> dict[str, dict[int, Request]]:
    """condition -> place of the question -> request: all that `audit` asks a model of this identity.

    Raises:
        ValueError: there are no questions, or all are of one patient.
    """
    questions = _asked(questions, options)
    shown = {name: with_pictures(questions, which) for name, which in CONDITIONS.items()}
    return _requests(identity, shown, _places(questions, options), options)


def _asked(questions: Sequence[Question], options: AuditOptions) -> list[Question]:
    found = [one for one in questions if one.answer_boxes is None or options.boxes is not None]
    if not found:
        raise ValueError("there are no questions to audit on")
    return found


def _places(questions: Sequence[Question], options: AuditOptions) -> list[int]:
    """Which of the questions are asked."""
    if not options.limit or options.limit >= len(questions):
        return list(range(len(questions)))
    return [place * len(questions) // options.limit for place in range(options.limit)]


def _requests(
    identity: Mapping[str, Any], shown: Mapping[str, Sequence[Question]], places: Sequence[int], options: AuditOptions
) -> dict[str, dict[int, Request]]:
    keys = Keys(identity)
    found: dict[str, dict[int, Request]] = {}
    for name, ones in shown.items():
        own = {place: options.question(ones[place]) for place in places}
        found[name] = {place: keys.request(one, options.prompt(one), options.most(one)) for place, one in own.items()}
    return found


def measured_audit(
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[texts.Reply]],
    spoken: dict[str, list[str]],
    training: Sequence[Question],
    failed: Mapping[str, str],
) -> Evaluation:
    """All measures of questions that were answered on every picture.

    Args:
        questions: as they were asked.
        answers: replies by condition, in the order of the questions.
        spoken: their texts, every box in fractions.
        training: for the majority guess.
        failed: what could not be asked, and why.
    """
    parsed = {name: [parse_reply(text) for text in ones] for name, ones in spoken.items()}
    found = {name: [replied(*pair) for pair in zip(questions, ones, strict=True)] for name, ones in parsed.items()}
    measures = [compared(question, _at(parsed, place), _at(found, place)) for place, question in enumerate(questions)]
    shares = {name: [one["accuracy.1"] for one in found[name]] for name in ("real", "blank")}
    rows = measured(questions, measures) + kept(questions, shares["real"], shares["blank"])
    if training:
        guess = Majority(training)
        spoken["majority"] = [f"Answer: {guess.answer(question)}" for question in questions]
        rules = {*OPEN_AND_CLOSED, *ANSWERS}
        found["majority"] = [
            {rule: value for rule, value in replied(question, parse_reply(text)).items() if rule in rules}
            for question, text in zip(questions, spoken["majority"], strict=True)
        ]
    systems: dict[str, Any] = {
        name: {"what": WHAT[name], "rows": as_dicts(measured(questions, ones))} for name, ones in found.items()
    }
    used = {row["rule"] for one in systems.values() for row in one["rows"]} | {row.rule for row in rows}
    summary = {
        "schema": "trimtab.medclm.audit/1",
        "n": len(questions),
        "rules": {rule: text for rule, text in {**ANSWERS, **RULES, **MEASURES}.items() if rule in used},
        "systems": systems,
        "measures": as_dicts(rows),
        "left_out": _left_out(questions, used, training),
        "failed": dict(failed),
        "replies": _counted(answers, parsed),
    }
    return Evaluation(summary, predicted(questions, spoken, found))


def _at(columns: Mapping[str, Sequence[Any]], place: int) -> dict[str, Any]:
    return {name: ones[place] for name, ones in columns.items()}


def _left_out(questions: Sequence[Question], used: set[str], training: Sequence[Question]) -> dict[str, str]:
    """What is not measured -> why."""
    reasoned = any(one.reason for one in questions)
    found = {}
    if "iou.1" not in used:
        found["boxes: IoU and Acc@0.5"] = (
            "no box is known or asked for" if reasoned else "no question asks for reasoning, which would quote it"
        )
    if "lateral.1" not in used and "side.1" not in used:
        found["laterality"] = "no right answer names a side"
    if "agrees.1" not in used:
        found["agreement of reasoning and answer, claims, HVRR"] = "no question asks for reasoning"
    if "kept.1" not in used:
        found["accuracy kept on blank images"] = "not one answer on the real images is right"
    if not training:
        found["majority guess"] = "there are no training questions"
    return found


def _counted(answers: Mapping[str, Sequence[texts.Reply]], parsed: Mapping[str, Sequence[Reply]]) -> dict[str, int]:
    """How the replies ended, over all pictures, and their tokens."""
    every = [one for ones in answers.values() for one in ones]
    ends = Counter(one.finish for one in every)
    return {
        "replies": len(every),
        "cut off": ends["length"],
        "refused": sum(bool(one.refusal) or one.finish == "content_filter" for one in every),
        "without an answer": sum(not one.answer for ones in parsed.values() for one in ones),
        "prompt tokens": sum(one.prompt_tokens for one in every),
        "completion tokens": sum(one.completion_tokens for one in every),
    }

"""`evaluate`: the model, the same model without the pictures, and guesses from the text, on one set of questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trimtab.files import write_text
from trimtab.medclm.boxes import ModelBoxes
from trimtab.medclm.evaluation.generation import replies
from trimtab.medclm.evaluation.majority import Majority, WithBoxNumbers
from trimtab.medclm.evaluation.metrics import RULES, scores
from trimtab.medclm.evaluation.parsing import parse_reply
from trimtab.medclm.evaluation.pictures import with_pictures
from trimtab.medclm.evaluation.questions import Question
from trimtab.medclm.evaluation.tables import as_dicts, measured
from trimtab.medclm.guessing import SYSTEM

SYSTEMS = {
    "model": "the trained model",
    "text only": "the same model, every image replaced by one of another patient, no box drawn: only the text can help",
    "blank": "the same model, every image replaced by an even grey one, no box drawn",
    "majority": "the most common training answer to such a question",
    SYSTEM: "where the question quotes a box, the answer of most of the five nearest boxes of such training questions; else "
    "the majority: what the words and numbers alone give away",
}
PICTURES = {"model": "own", "text only": "other", "blank": "blank"}
"""Systems that are the model, and which pictures it is shown."""
OPEN_AND_CLOSED = ("closed.1", "named.1", "exact.1", "f1.1", "recall.1", "boxes.1", "boxes50.1")


@dataclass(frozen=True)
class Evaluation:
    """What `evaluation.json` holds, and the predictions.

    Attributes:
        summary: rules, systems with their measured rows, n; `looking`: the model's scores minus those it has without the
            pictures, question by question, measured alike.
        predictions: question by question: texts, replies, scores.
    """

    summary: dict[str, Any]
    predictions: list[dict[str, Any]]


def evaluate(
    model: Any,
    processor: Any,
    questions: Sequence[Question],
    training: Sequence[Question],
    batch: int = 32,
    progress: Callable[[str, int], None] | None = None,
    *,
    blank: bool = False,
    boxes: ModelBoxes | None = None,
) -> Evaluation:
    """Ask all questions of all systems and measure.

    Args:
        model, processor: from `training.models`.
        questions: held out.
        training: questions of the training split, for the majority and, where they quote boxes, the guess from their numbers;
            empty leaves both out.
        batch: questions at a time.
        progress: called with (system, questions done).
        blank: ask with grey pictures as well.
        boxes: how the model writes boxes, if not as fractions.

    Raises:
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("there are no questions to evaluate on")

    def tell(system: str) -> Callable[[int], None] | None:
        return None if progress is None else lambda done: progress(system, done)

    said = {
        system: replies(
            model, processor, with_pictures(questions, which), batch=batch, progress=tell(system), boxes=boxes
        )
        for system, which in PICTURES.items()
        if blank or system != "blank"
    }
    if training:
        majority = Majority(training)
        said["majority"] = [f"Answer: {majority.answer(question)}" for question in questions]
        nearest = WithBoxNumbers(training, majority)
        if nearest.nearest:
            said[SYSTEM] = [f"Answer: {nearest.answer(question)}" for question in questions]
    systems: dict[str, Any] = {}
    everything: dict[str, list[dict[str, float]]] = {}
    for system, texts in said.items():
        found = [scores(question, parse_reply(text)) for question, text in zip(questions, texts, strict=True)]
        if system in ("majority", SYSTEM):
            found = [{rule: value for rule, value in one.items() if rule in OPEN_AND_CLOSED} for one in found]
        everything[system] = found
        systems[system] = {"what": SYSTEMS[system], "rows": as_dicts(measured(questions, found))}
    looking = {
        system: as_dicts(measured(questions, [_minus(*pair) for pair in zip(everything["model"], other, strict=True)]))
        for system, other in everything.items()
        if system in PICTURES and system != "model"
    }
    used = {row["rule"] for one in systems.values() for row in one["rows"]}
    summary = {
        "schema": "trimtab.medclm.evaluation/1",
        "n": len(questions),
        "rules": {rule: text for rule, text in RULES.items() if rule in used},
        "systems": systems,
        "looking": looking,
    }
    return Evaluation(summary, predicted(questions, said, everything))


def predicted(
    questions: Sequence[Question],
    said: Mapping[str, Sequence[str]],
    found: Mapping[str, Sequence[Mapping[str, float]]],
) -> list[dict[str, Any]]:
    """Question by question: texts, replies and scores of every system."""
    return [
        {
            "name": question.name, "image": str(question.image), "question": question.question, "answer": question.answer,
            "stage": question.stage, "domain": question.domain, "kind": question.kind, "draw": question.draw,
            "box": list(question.box.corners) if question.box is not None else None,
            "replies": {system: texts[place] for system, texts in said.items()},
            "scores": {system: dict(ones[place]) for system, ones in found.items()},
        }
        for place, question in enumerate(questions)
    ]  # fmt: skip


def _minus(own: dict[str, float], other: dict[str, float]) -> dict[str, float]:
    return {rule: value - other[rule] for rule, value in own.items()}


def write(found: Evaluation, folder: Path, about: Mapping[str, Any], name: str = "evaluation.json") -> None:
    """`evaluation.json`, or another name, and `predictions.jsonl` in `folder`; `about` says on what was evaluated."""
    write_text(folder / "predictions.jsonl", "".join(json.dumps(one) + "\n" for one in found.predictions))
    write_text(folder / name, json.dumps({**about, **found.summary}, indent=1) + "\n")

"""The question as the evaluation sees it, from a MedCLM row or from a benchmark's file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

from trimtab.medclm.boxes import ModelBoxes
from trimtab.medclm.boxes.forms import Corners
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.records import Box, SplitName
from trimtab.medclm.texts.asking import BOX_KINDS
from trimtab.medclm.texts.choices import SIDES, YES_NO, choices_of
from trimtab.medclm.training.rows import as_written, examples_of

__all__ = ["SIDES", "YES_NO", "Question", "choices_of", "in_words_of", "questions_of"]


@dataclass(frozen=True)
class Question:
    """One question about one image.

    Attributes:
        name: unique in its set.
        image: file.
        question, answer: texts; the answer is the right one.
        cluster: patient (or image): what the bootstrap draws.
        stage, domain, kind: groups of the report; "" where there is none.
        choices: the possible answers of a closed question, empty for an open one.
        closed: the file calls the question closed, be its choices known or only named in the question ("left or right?").
        reason: whether reasoning is asked for.
        draw: draw the box on the image.
        blank: show an even grey picture of the image's size.
        answer_boxes: the right boxes of a question whose answer is boxes; empty where there are none, None of other questions.
        worded: the question as the model is asked it, where it writes boxes in another way.
        box, organ, side: what grounding is held against; None where unknown.
    """

    name: str
    image: Path
    question: str
    answer: str
    cluster: str
    stage: str = ""
    domain: str = ""
    kind: str = ""
    choices: tuple[str, ...] = field(default=())
    reason: bool = False
    draw: bool = False
    box: Box | None = None
    organ: str | None = None
    side: str | None = None
    closed: bool = False
    blank: bool = False
    answer_boxes: tuple[Corners, ...] | None = None
    worded: str = ""


def questions_of(folder: DataSetFolder, splits: Iterable[SplitName], *, draw_boxes: bool = True) -> list[Question]:
    """The rows of these splits of a built data set as questions.

    Raises:
        ValueError: there are none.
    """
    found = []
    for example in examples_of(folder, splits):
        row = example.row
        host = row.host if row.box is not None else None
        found.append(
            Question(
                name=row.row_id, image=example.image, question=row.question, answer=row.answer, cluster=row.patient,
                stage=row.stage, domain=row.domain, kind=row.question_type,
                choices=choices_of(row.answer, row.question_type), reason=bool(row.reasoning),
                draw=draw_boxes and row.stage == "easy" and row.box is not None, box=row.box,
                organ=host.organ if host is not None and host.organ != "unknown" else None,
                side=host.side if host is not None and host.side in SIDES else None,
                answer_boxes=tuple(one.box.corners for one in row.objects) if row.question_type in BOX_KINDS else None,
            )
        )  # fmt: skip
    return found


def in_words_of(questions: Sequence[Question], folder: DataSetFolder, boxes: ModelBoxes) -> list[Question]:
    """The questions of a built set, worded with every box as a model writes it."""
    names = {one.name for one in questions}
    examples = [one for one in examples_of(folder, get_args(SplitName)) if one.row.row_id in names]
    worded = {one.row.row_id: one.row.question for one in as_written(folder, examples, boxes)}
    return [replace(one, worded=worded[one.name]) for one in questions]

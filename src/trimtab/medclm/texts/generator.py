"""The protocol of text generators, and the row that a generated text becomes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from trimtab.medclm.records import ImageRecord, Lesion, Rejected, Row, Stage
from trimtab.medclm.texts.asking import Ask
from trimtab.medclm.texts.steps import tied
from trimtab.medclm.texts.wording import seed_text, shown


@dataclass(frozen=True, slots=True)
class Text:
    """What a generator writes: a question, the reasoning ("" for Hard) and the answer."""

    question: str
    reasoning: str
    answer: str


class Generator(Protocol):
    """Writes question, reasoning and answer of one row."""

    name: str

    def generate(
        self,
        record: ImageRecord,
        lesion: Lesion | None,
        stage: Stage,
        seed: int,
        ask: Ask | None = None,
        anchor: Lesion | None = None,
    ) -> Row:
        """The row that asks `ask` about `lesion` of `record`.

        Args:
            record: the image.
            lesion: one of its lesions; None asks about what the image does not show.
            stage: easy, medium or hard.
            seed: chooses among wordings.
            ask: the question; without it the seed chooses one of those that `asks` allows.
            anchor: Hard only: the lesion of another patient that this row is the hard partner of.

        Raises:
            GenerationError: no text could be had; `error.rejected` is the row for the report.
            ValueError: nothing can be asked about the lesion at this stage.
        """
        ...


class GenerationError(RuntimeError):
    """A generator gave no usable text for one row."""

    def __init__(self, row_id: str, reason: str, value: str = "") -> None:
        self.rejected = Rejected(file="rows.jsonl", row=row_id, reason=reason, value=value)
        super().__init__(str(self.rejected))


def row_name(record: ImageRecord, lesion: Lesion | None, stage: Stage, ask: Ask) -> str:
    """Id of a row: image or lesion, stage, type, and the class where the row is not about one lesion's own class."""
    about = lesion.lesion_id if lesion is not None else record.image_id
    named = "" if lesion is not None and ask.label == lesion.label else f":{shown(ask.label).replace(' ', '-')}"
    other = f":{shown(ask.other).replace(' ', '-')}" if ask.other else ""
    return f"{about}:{stage}:{ask.kind}-{ask.variant}{named}{other}"


def seed_of(seed: int, name: str) -> int:
    """The seed of one row: the first 32 bits of SHA-256 of the build's seed and the row's id.

    >>> seed_of(0, "a") == seed_of(0, "a"), seed_of(0, "a") == seed_of(1, "a")
    (True, False)
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:4], "big")


def target_of(reasoning: str, answer: str) -> tuple[str, tuple[int, int], tuple[int, int]]:
    """The text a model learns, and the offsets of reasoning and answer in it.

    >>> target_of("It is dense.", "nodule")
    ('Reasoning: It is dense. Answer: nodule', (11, 23), (32, 38))
    >>> target_of("", "nodule")
    ('Answer: nodule', (0, 0), (8, 14))
    """
    head = f"Reasoning: {reasoning} " if reasoning else ""
    start = len("Reasoning: ") if reasoning else 0
    target = f"{head}Answer: {answer}"
    return target, (start, start + len(reasoning)), (len(target) - len(answer), len(target))


def finished_row(
    text: Text,
    record: ImageRecord,
    lesion: Lesion | None,
    stage: Stage,
    seed: int,
    ask: Ask,
    generator: str,
    prompt_id: str,
    anchor: Lesion | None = None,
) -> Row:
    """The row of a text: domain = class asked about x modality; flags: the lesion's, and the anchor of a Hard row."""
    target, reasoning, answer = target_of(text.reasoning, text.answer)
    objects, steps = tied(text.reasoning, reasoning[0], record, lesion, ask)
    flags = set(lesion.flags if lesion is not None else ())
    if anchor is not None:
        flags.add(f"anchor={anchor.lesion_id}")
    return Row.model_construct(
        row_id=row_name(record, lesion, stage, ask),
        image_id=record.image_id,
        patient=record.patient,
        split=record.split,
        stage=stage,
        domain=f"{shown(ask.label)} x {record.modality}",
        question_type=ask.kind,
        question=text.question,
        reasoning=text.reasoning,
        answer=text.answer,
        target=target,
        spans={"reasoning": reasoning, "answer": answer},
        box=lesion.box if lesion is not None else None,
        box_pixels=lesion.box.pixels(record.width, record.height) if lesion is not None else None,
        lesion_id=lesion.lesion_id if lesion is not None else None,
        objects=objects,
        steps=steps,
        seed_text=seed_text(record, lesion),
        host=lesion.host if lesion is not None else None,
        generator=generator,
        prompt_id=prompt_id,
        seed=seed,
        flags=tuple(sorted(flags)),
    )

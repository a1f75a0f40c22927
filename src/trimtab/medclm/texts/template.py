"""TemplateGenerator: deterministic texts, no network; wordings vary by seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from trimtab.medclm.records import ImageRecord, Lesion, Row, Stage
from trimtab.medclm.texts.asking import Ask, asks
from trimtab.medclm.texts.generator import Text, finished_row, row_name, seed_of
from trimtab.medclm.texts.reasoning import steps
from trimtab.medclm.texts.wording import (
    definite,
    indefinite,
    is_plural,
    known,
    place,
    quoted,
    regions,
    same_class,
    sought,
    the_largest,
)

VERSION = "template-3"
"""Changes whenever a wording changes; it is the prompt id of every row."""

QUESTIONS: Mapping[str, Sequence[str]] = {
    "what/box": (
        "What is the finding in the region {box} of this {modality}?",
        "Which finding is marked at {box}?",
        "Name the finding inside the box {box}.",
    ),
    "where/box": (
        "Where does the region {box} lie in the anatomy?",
        "Describe the anatomical location of the marked region {box}.",
        "In anatomical terms, where is the finding at {box}?",
    ),
    "organ/box": (
        "Which structure holds the finding at {box}?",
        "In which anatomical structure does the region {box} lie?",
        "Name the structure that contains the box {box}.",
    ),
    "side/box": (
        "On which side of the patient is the finding at {box}?",
        "Is the region {box} on the patient's left, right, or at the midline?",
    ),
    "present/box": (
        "Does the region {box} show {label}?",
        "Is the finding at {box} {label}?",
    ),
    "count/box": (
        "The region {box} shows {label}. How many {labels} are there in the whole image?",
        "{box} is marked as {label}. Counting it too, how many {labels} does this image show?",
    ),
    "compare/biggest": (
        "Is the region {box} the largest of the {labels} in this image?",
        "Among the {labels} in this image, is the one at {box} the largest?",
    ),
    "what/image": (
        "What finding does this {modality} show?",
        "Which abnormality, if any, is visible in this image?",
        "Name the finding in this {modality}.",
    ),
    "refer/only": ("Mark {the} with a box.", "Where exactly in the picture {is} {the}? Give the box."),
    "refer/largest": ("Mark {the largest} with a box.", "Give the box of {the largest}."),
    "detect/image": (
        "Find {sought} in this {modality} and give every box.",
        "Give a box for every region of this image that shows {sought}.",
    ),
    "detect/all": (
        "Find every abnormality in this {modality}: name it and give its box.",
        "Name all findings of this image, each with its box.",
    ),
    "what/organ": (
        "What finding lies in {place}?",
        "Which abnormality is visible in {place}?",
    ),
    "where/only": ("Where {is} {the} located?", "Describe the anatomical location of {the}."),
    "where/largest": (
        "Where is {the largest} located?",
        "Describe the anatomical location of {the largest}.",
    ),
    "organ/only": ("Which structure holds {the}?", "In which anatomical structure {is} {the}?"),
    "organ/largest": (
        "Which structure holds {the largest}?",
        "In which anatomical structure is {the largest}?",
    ),
    "side/only": ("On which side of the patient {is} {the}?", "Which side of the patient has {the}?"),
    "side/image": ("Which eye is shown, left or right?", "Is this a photograph of a left or of a right eye?"),
    "present/image": (
        "Is there any sign of {label} in this {modality}?",
        "Does this image show {label}?",
        "Can {label} be seen here?",
    ),
    "count/image": (
        "How many {labels} does this image show?",
        "Count the {labels} in this {modality}.",
    ),
    "compare/number": (
        "Which are more numerous here, {labels} or {others}?",
        "Does this image show more {labels} or more {others}?",
    ),
    "compare/area": (
        "Which covers the larger box, {the largest} or {the other}?",
        "Which has the larger box here, {the largest} or {the other}?",
    ),
}


class TemplateGenerator:
    """Texts from templates. Reasoning goes look, locate, organ, describe, conclude, and quotes the box in 0-1 with 4 decimals.

    Steps that the record does not support (no organ, no side) are left out. Hard rows have no reasoning. All wordings and the
    order of steps are ours.

    >>> from trimtab.medclm.records import Box
    >>> box = Box(x0=0.1, y0=0.2, x1=0.3, y1=0.4)
    >>> lesion = Lesion(lesion_id="a/1", image_id="a", label="nodule", box=box, source_row="a.json:1")
    >>> record = ImageRecord(image_id="a", file="a.png", width=100, height=100, patient="p", modality="X-ray", source="s",
    ...                      lesions=(lesion,))
    >>> row = TemplateGenerator().generate(record, lesion, "hard", 0, Ask("present", "image", "nodule", "yes"))
    >>> row.target, row.spans["answer"]
    ('Answer: yes', (8, 11))
    """

    name = "template"

    def generate(
        self,
        record: ImageRecord,
        lesion: Lesion | None,
        stage: Stage,
        seed: int,
        ask: Ask | None = None,
        anchor: Lesion | None = None,
    ) -> Row:
        """The row; see `Generator`.

        Raises:
            ValueError: nothing can be asked about the lesion at this stage.
        """
        if ask is None:
            possible = asks(record, lesion, stage, {other.label for other in record.lesions})
            if not possible:
                about = lesion.lesion_id if lesion is not None else record.image_id
                raise ValueError(f"nothing can be asked about {about!r} at stage {stage} without ambiguity")
            ask = random.Random(f"{seed}/{record.image_id}").choice(possible)
        row_seed = seed_of(seed, row_name(record, lesion, stage, ask))
        choose = random.Random(row_seed)
        question = choose.choice(QUESTIONS[f"{ask.kind}/{ask.variant}"]).format(**_words(record, lesion, ask))
        reasoning = "" if stage == "hard" else " ".join(steps(record, lesion, ask, stage, choose))
        text = Text(question, reasoning, ask.answer)
        return finished_row(text, record, lesion, stage, row_seed, ask, self.name, VERSION, anchor)


def _words(record: ImageRecord, lesion: Lesion | None, ask: Ask) -> dict[str, str]:
    host = known(lesion.host) if lesion is not None else None
    number = len(same_class(record, ask.label))
    return {
        "box": quoted(lesion.box) if lesion is not None else "",
        "modality": record.modality,
        "label": indefinite(ask.label),
        "labels": regions(ask.label),
        "sought": sought(ask.label),
        "others": regions(ask.other) if ask.other else "",
        "the": definite(ask.label, number),
        "the largest": the_largest(ask.label, number),
        "the other": the_largest(ask.other, len(same_class(record, ask.other))) if ask.other else "",
        "is": "are" if number > 1 or is_plural(ask.label) else "is",
        "place": f"the {place(record, host)}" if host is not None else "",
    }

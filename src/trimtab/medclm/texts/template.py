"""TemplateGenerator: deterministic texts, no network; wordings vary by seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from trimtab.medclm.records import ImageRecord, Lesion, Row, Stage
from trimtab.medclm.texts.asking import NO_FINDING, Ask, asks, largest
from trimtab.medclm.texts.generator import Text, finished_row, row_name, seed_of
from trimtab.medclm.texts.wording import (
    indefinite,
    is_eye,
    is_plural,
    known,
    part_of_picture,
    quoted,
    regions,
    same_class,
    shown,
    size_word,
    the_place,
)

VERSION = "template-2"
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
    "what/organ": (
        "What finding lies in {place}?",
        "Which abnormality is visible in {place}?",
    ),
    "where/only": ("Where {is} the {plain} located?", "Describe the anatomical location of the {plain}."),
    "where/largest": (
        "Where is the largest of the {labels} located?",
        "Describe the anatomical location of the largest of the {labels}.",
    ),
    "organ/only": ("Which structure holds the {plain}?", "In which anatomical structure {is} the {plain}?"),
    "organ/largest": (
        "Which structure holds the largest of the {labels}?",
        "In which anatomical structure is the largest of the {labels}?",
    ),
    "side/only": ("On which side of the patient {is} the {plain}?", "Which side of the patient {has} the {plain}?"),
    "side/image": ("Which eye is shown, left or right?", "Is this a photograph of a left or of a right eye?"),
    "present/image": (
        "Is there any sign of {plain} in this {modality}?",
        "Does this image show {label}?",
        "Can {plain} be seen here?",
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
        "Which covers the larger box, the largest of the {labels} or of the {others}?",
        "Which single region is larger here, that of {plain} or that of {other}?",
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
        question = question[0].upper() + question[1:]
        reasoning = "" if stage == "hard" else " ".join(_steps(record, lesion, ask, stage, choose))
        text = Text(question, reasoning, ask.answer)
        return finished_row(text, record, lesion, stage, row_seed, ask, self.name, VERSION, anchor)


def _words(record: ImageRecord, lesion: Lesion | None, ask: Ask) -> dict[str, str]:
    host = known(lesion.host) if lesion is not None else None
    plural = is_plural(ask.label)
    return {
        "box": quoted(lesion.box) if lesion is not None else "",
        "modality": record.modality,
        "label": indefinite(ask.label),
        "labels": regions(ask.label),
        "plain": shown(ask.label),
        "other": shown(ask.other),
        "others": regions(ask.other) if ask.other else "",
        "is": "are" if plural else "is",
        "has": "has",
        "place": the_place(record, host) if host is not None else "",
    }


def _steps(record: ImageRecord, lesion: Lesion | None, ask: Ask, stage: Stage, choose: random.Random) -> list[str]:
    if lesion is None:
        return [_look_without(record, ask, choose), _concluded(record, None, ask)]
    steps = [_look(record, lesion, ask, stage, choose), _located(record, lesion, choose)]
    host = known(lesion.host)
    if host is not None:
        steps.append(_organ_step(lesion, choose))
    steps.append(_described(record, lesion, ask))
    steps.append(_concluded(record, lesion, ask))
    return [step for step in steps if step]


def _look(record: ImageRecord, lesion: Lesion, ask: Ask, stage: Stage, choose: random.Random) -> str:
    box = quoted(lesion.box)
    if stage == "easy":
        return choose.choice(
            (
                f"I look at the region {box}.",
                f"The question points at the region {box} of this {record.modality}.",
                f"The marked box is {box}.",
            )
        )
    number = len(same_class(record, lesion.label))
    one = "The finding stands out" if number == 1 else "The largest such region stands out"
    if lesion.lesion_id != largest(same_class(record, lesion.label)).lesion_id:
        one = "One such region stands out"
    return choose.choice(
        (f"Looking over the whole {record.modality}: {one[0].lower()}{one[1:]} at {box}.", f"{one} at {box}.")
    )


def _look_without(record: ImageRecord, ask: Ask, choose: random.Random) -> str:
    if ask.label == NO_FINDING:
        return choose.choice(
            (
                f"Looking over the whole {record.modality}, no region stands out.",
                "I go through the image part by part and find nothing abnormal.",
            )
        )
    return choose.choice(
        (
            f"Looking over the whole {record.modality} for {regions(ask.label)}, no region fits.",
            f"I go through the image part by part in search of {regions(ask.label)} and find none.",
        )
    )


def _located(record: ImageRecord, lesion: Lesion, choose: random.Random) -> str:
    where = part_of_picture(lesion.box)
    host = known(lesion.host)
    sentence = choose.choice((f"It lies in {where}", f"Its middle is in {where}"))
    if host is None or host.side is None:
        return sentence + "."
    if is_eye(record):
        return f"{sentence}; by the place of the optic disc this is a {host.side} eye."
    if host.side == "midline":
        return f"{sentence}, at the patient's midline."
    return f"{sentence}, which is on the patient's {host.side}."


def _organ_step(lesion: Lesion, choose: random.Random) -> str:
    host = lesion.host
    assert host is not None
    zone = f" ({host.zone})" if host.zone else ""
    if host.fallback:
        return f"No structure holds enough of it; the nearest is the {host.organ}{zone}."
    if host.rule == "inside_fraction":
        held = "All" if host.score > 0.995 else f"{host.score:.0%}"
        return choose.choice(
            (
                f"{held} of the box lies inside the {host.organ}{zone}.",
                f"The {host.organ} holds {held.lower()} of the box{zone}.",
            )
        )
    return f"Of the structures there it overlaps most with the {host.organ}{zone}."


def _described(record: ImageRecord, lesion: Lesion, ask: Ask) -> str:
    width, height = lesion.box.x1 - lesion.box.x0, lesion.box.y1 - lesion.box.y0
    size = f"It spans {width:.0%} of the image's width and {height:.0%} of its height"
    host = known(lesion.host)
    if host is not None and lesion.area_fraction is not None and not host.fallback:
        size += f", which is {size_word(lesion.area_fraction)} for the {host.organ}"
    if ask.kind == "count" or (ask.kind == "compare" and ask.variant == "number"):
        counts = {label: len(same_class(record, label)) for label in filter(None, (ask.label, ask.other))}
        size += f". In the whole image I count {' and '.join(regions(label, n) for label, n in counts.items())}"
    if ask.kind == "compare" and ask.variant == "area":
        areas = {label: largest(same_class(record, label)).box.area for label in (ask.label, ask.other)}
        covered = " and ".join(f"{area:.2%} ({shown(label)})" for label, area in areas.items())
        size += f". The largest boxes cover {covered} of the image"
    if ask.kind == "compare" and ask.variant == "biggest":
        rank = (
            sorted((other.box.area for other in same_class(record, ask.label)), reverse=True).index(lesion.box.area) + 1
        )
        size += f". By area it is number {rank} of the {len(same_class(record, ask.label))} of its class"
    return size + "."


def _concluded(record: ImageRecord, lesion: Lesion | None, ask: Ask) -> str:
    if ask.kind == "what":
        if ask.label == NO_FINDING:
            return "So there is no finding."
        host = known(lesion.host) if lesion is not None else None
        where = f" {'near' if host.fallback else 'in'} {the_place(record, host)}" if host is not None else ""
        return f"So {'these are' if is_plural(ask.label) else 'this is'} {indefinite(ask.label)}{where}."
    if ask.kind == "present":
        if ask.answer == "yes":
            return f"So the answer is yes: {indefinite(ask.label)}."
        shown_instead = ""
        if lesion is not None:
            shown_instead = f"; {'they are' if is_plural(lesion.label) else 'it is'} {indefinite(lesion.label)}"
        return f"So the answer is no: not {indefinite(ask.label)}{shown_instead}."
    if ask.kind == "count":
        return f"So the number of {regions(ask.label)} is {ask.answer}."
    if ask.kind == "side":
        if is_eye(record):
            return f"So it is a {ask.answer} eye."
        return (
            "So the finding is at the midline."
            if ask.answer == "midline"
            else f"So it is the patient's {ask.answer} side."
        )
    if ask.kind == "compare":
        if ask.variant == "biggest":
            return f"So the answer is {ask.answer}."
        return f"So it is {'more numerous' if ask.variant == 'number' else 'larger'}: {ask.answer}."
    preposition = "near" if lesion is not None and lesion.host is not None and lesion.host.fallback else "in"
    finding = indefinite(ask.label)
    return f"So {finding} {'are' if is_plural(ask.label) else 'is'} seen {preposition} the {ask.answer}."

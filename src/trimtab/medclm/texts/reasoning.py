"""The reasoning of `TemplateGenerator`: look, locate, organ, describe, conclude."""

from __future__ import annotations

import random
from collections.abc import Sequence

from trimtab.medclm.english import is_plural_noun
from trimtab.medclm.records import ImageRecord, Lesion, Stage
from trimtab.medclm.texts.asking import ANY_FINDING, NO_FINDING, Ask, counted, largest
from trimtab.medclm.texts.wording import (
    beside,
    indefinite,
    is_eye,
    is_plural,
    known,
    lies_at,
    listed,
    part_of_picture,
    preposition,
    quoted,
    regions,
    same_class,
    shown,
    size_word,
    sought,
)


def steps(record: ImageRecord, lesion: Lesion | None, ask: Ask, stage: Stage, choose: random.Random) -> list[str]:
    """The sentences of the reasoning, in order; those that the record does not support are left out."""
    if ask.kind == "detect":
        return _detected(record, ask, choose)
    if lesion is None:
        return [_look_without(record, ask, choose), _concluded(record, None, ask)]
    found = [_look(record, lesion, ask, stage, choose), _located(record, lesion, choose)]
    host = known(lesion.host)
    if host is not None:
        found.append(_organ_step(lesion, choose))
    found.append(_described(record, lesion, ask))
    found.append(_concluded(record, lesion, ask))
    return found


FEW_TO_DESCRIBE = 5
"""Of so many boxes at most each has a sentence of its own (ours)."""


def _detected(record: ImageRecord, ask: Ask, choose: random.Random) -> list[str]:
    """All boxes in one sentence, each in one of its own where they are few, the answer."""
    lesions = counted(record, ask)
    if not lesions:
        about = ask if ask.label != ANY_FINDING else Ask("what", "image", NO_FINDING, NO_FINDING)
        return [_look_without(record, about, choose), f"So the answer is {ask.answer}."]
    labels = dict.fromkeys(one.label for one in lesions)
    parts = [_those_at(label, [one for one in lesions if one.label == label]) for label in labels]
    found = [f"Looking over the whole {record.modality}, I find {listed(parts)}."]
    if len(lesions) <= FEW_TO_DESCRIBE:
        found += [
            f"The one at {quoted(one.box)} lies in {part_of_picture(one.box)}{_side_of(record, one)}."
            for one in lesions
        ]
    return [*found, f"So the answer is {ask.answer}."]


def _those_at(label: str, lesions: Sequence[Lesion]) -> str:
    return f"{regions(label, len(lesions))} at {listed(quoted(one.box) for one in lesions)}"


def _side_of(record: ImageRecord, lesion: Lesion) -> str:
    host = known(lesion.host)
    if host is None or host.side is None or is_eye(record):
        return ""
    return ", at the patient's midline" if host.side == "midline" else f", on the patient's {host.side}"


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
            f"Looking over the whole {record.modality} for {sought(ask.label)}, no region fits.",
            f"I go through the image part by part in search of {sought(ask.label)} and find none.",
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
    if where.endswith("middle of the picture"):
        return f"{sentence}; it belongs to the patient's {host.side} side."
    return f"{sentence}, on the patient's {host.side}."


def _organ_step(lesion: Lesion, choose: random.Random) -> str:
    host = lesion.host
    assert host is not None
    zone = f" ({host.zone})" if host.zone else ""
    if host.fallback:
        return f"No structure that it may lie in holds enough of it; the nearest is the {host.organ}{zone}."
    if host.rule != "inside_fraction":
        return f"Of the structures there it overlaps most with the {host.organ}{zone}."
    held = "All" if host.score > 0.995 else f"{host.score:.0%}"
    if space := beside(lesion.label, host):
        return f"{held} of the box lies over the {host.organ}{zone}, beside which is the {space}."
    return choose.choice(
        (
            f"{held} of the box lies inside the {host.organ}{zone}.",
            f"The {host.organ} {'hold' if is_plural_noun(host.organ) else 'holds'} {held.lower()} of the box{zone}.",
        )
    )


def _described(record: ImageRecord, lesion: Lesion, ask: Ask) -> str:
    width, height = lesion.box.x1 - lesion.box.x0, lesion.box.y1 - lesion.box.y0
    size = f"It spans {width:.0%} of the image's width and {height:.0%} of its height"
    host = known(lesion.host)
    if host is not None and lesion.area_fraction is not None and not host.fallback and not beside(lesion.label, host):
        size += f", which is {size_word(lesion.area_fraction)} for the {host.organ}"
    if counted(record, ask):
        size += f". In the whole image I count {_list_of(record, ask)}"
    if ask.kind == "compare" and ask.variant == "area":
        areas = {label: largest(same_class(record, label)).box.area for label in (ask.label, ask.other)}
        covered = " and ".join(f"{area:.2%} ({shown(label)})" for label, area in areas.items())
        size += (
            f". {'The largest boxes cover' if any(_several(record, ask)) else 'The boxes cover'} {covered} of the image"
        )
    if ask.kind == "compare" and ask.variant == "biggest":
        areas_of = sorted((other.box.area for other in same_class(record, ask.label)), reverse=True)
        size += f". By area this one is number {areas_of.index(lesion.box.area) + 1}"
    return size + "."


def _several(record: ImageRecord, ask: Ask) -> list[bool]:
    return [len(same_class(record, label)) > 1 for label in (ask.label, ask.other)]


def _list_of(record: ImageRecord, ask: Ask) -> str:
    """The number of each class with all its boxes: "2 nodules at [...] and [...], and 1 mass at [...]"."""
    parts = []
    for label in filter(None, (ask.label, ask.other)):
        parts.append(_those_at(label, same_class(record, label)))
    return ", and ".join(parts)


def _concluded(record: ImageRecord, lesion: Lesion | None, ask: Ask) -> str:
    if ask.kind == "refer":
        return f"So the answer is {ask.answer}."
    if ask.kind == "what":
        if ask.label == NO_FINDING:
            return "So there is no finding."
        host = known(lesion.host) if lesion is not None else None
        where = f" {lies_at(record, ask.label, host)}" if host is not None else ""
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
        return f"So the class with {'more regions' if ask.variant == 'number' else 'the larger box'} is {ask.answer}."
    assert lesion is not None
    assert lesion.host is not None
    finding = indefinite(ask.label)
    where = preposition(ask.label, lesion.host)
    return f"So {finding} {'are' if is_plural(ask.label) else 'is'} seen {where} the {ask.answer}."

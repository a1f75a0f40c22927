"""What can be asked about an image without ambiguity, with the answer that the record gives."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from trimtab.medclm.findings import side_in
from trimtab.medclm.records import ImageRecord, Lesion, QuestionType, Stage
from trimtab.medclm.texts.wording import (
    NO_BOX,
    beside,
    in_reading_order,
    is_counted,
    is_eye,
    known,
    named_boxes,
    place,
    same_class,
    shown,
)

CLEARLY = 1.1
"""One box is called larger than another if its area is at least this many times the other's (ours)."""
MOST_COUNTED = 20
"""More boxes than these are not counted where the reasoning has to list them (ours)."""
INCOMPLETE = "incomplete_image"
NO_FINDING = "no finding"
ANY_FINDING = "any finding"
"""What is asked for where all boxes of an image are."""


BOX_KINDS = ("refer", "detect")
"""Question types whose answer is boxes."""
BOXES = "boxes"


@dataclass(frozen=True, slots=True)
class Ask:
    """One question that has exactly one answer.

    Attributes:
        kind: the question type.
        variant: how the lesion is pointed at: "box" (by its box), "only", "largest" of its class, "organ" (by where it
            lies), "image" (the whole image), "all" (everything in it); for comparisons "biggest", "number", "area".
        label: class asked about.
        answer: the short answer.
        other: second class of a comparison.
    """

    kind: QuestionType
    variant: str
    label: str
    answer: str
    other: str = ""

    @property
    def like(self) -> str:
        """What the answer counts as where answers are balanced: boxes differ all, so that they count as one and are never too
        common."""
        return BOXES if self.kind in BOX_KINDS and self.answer != NO_BOX else self.answer

    @property
    def key(self) -> str:
        """Questions with the same key can be told apart by the image alone: type, and the class the question names."""
        if self.kind == "what" or (self.kind, self.variant) == ("side", "image"):
            return f"{self.kind}/{self.variant}"
        return ":".join((f"{self.kind}/{self.variant}", *sorted(filter(None, (self.label, self.other)))))


def largest(lesions: Collection[Lesion]) -> Lesion:
    """The lesion with the largest box; equal ones by id."""
    return min(lesions, key=lambda lesion: (-lesion.box.area, lesion.lesion_id))


def is_complete(record: ImageRecord) -> bool:
    """Whether counts and absences can be trusted: no box of the image was rejected, none stands for a crowd."""
    return not any(flag in (INCOMPLETE, "crowd") for lesion in record.lesions for flag in lesion.flags)


def counted(record: ImageRecord, ask: Ask) -> tuple[Lesion, ...]:
    """The lesions that the reasoning lists: where it states their number (counts, comparisons of numbers) or finds them all."""
    if ask.kind == "detect":
        return in_reading_order(record.lesions if ask.variant == "all" else same_class(record, ask.label))
    if ask.kind == "count" or (ask.kind, ask.variant) == ("compare", "biggest"):
        return same_class(record, ask.label)
    if (ask.kind, ask.variant) == ("compare", "number"):
        return same_class(record, ask.label) + same_class(record, ask.other)
    return ()


def spoken_of(record: ImageRecord, lesion: Lesion | None, ask: Ask) -> tuple[Lesion, ...]:
    """The lesions that a row's reasoning and answer are about: its own, those it lists, those it compares."""
    listed = counted(record, ask)
    if (ask.kind, ask.variant) == ("compare", "area"):
        listed = tuple(largest(same_class(record, label)) for label in (ask.label, ask.other))
    if lesion is None or any(one.lesion_id == lesion.lesion_id for one in listed):
        return listed
    return (lesion, *listed)


def box_asks(record: ImageRecord, lesion: Lesion | None, stage: Stage, labels: Collection[str]) -> list[Ask]:
    """The questions about `lesion` whose answer is boxes: its own (a referring question), or those of all of its class.

    Without a lesion, those of everything in the image and of a class that is absent.

    Of Medium and Hard; Easy gives the box away. A lesion must be singled out as in `asks`. All boxes of a class, or of the
    image, are asked for where none was rejected and there are no more than `MOST_COUNTED`.

    Args:
        record, lesion, stage, labels: as in `asks`.
    """
    if stage == "easy":
        return []
    found: list[Ask] = []
    complete = is_complete(record)
    if lesion is not None:
        alike = in_reading_order(same_class(record, lesion.label))
        if variant := _singled_out(lesion, alike):
            found.append(Ask("refer", variant, lesion.label, named_boxes([lesion])))
        if complete:
            found.append(Ask("detect", "image", lesion.label, named_boxes(alike)))
    elif complete:
        found.append(Ask("detect", "all", ANY_FINDING, named_boxes(in_reading_order(record.lesions))))
        absent = sorted(set(labels) - {one.label for one in record.lesions})
        found += [Ask("detect", "image", label, NO_BOX) for label in absent]
    return [ask for ask in found if len(counted(record, ask)) <= MOST_COUNTED]


def asks(record: ImageRecord, lesion: Lesion | None, stage: Stage, labels: Collection[str]) -> list[Ask]:
    """All questions about `lesion` (or, without one, about what the image does not show), in a fixed order.

    Easy points at the lesion by its box. Medium and Hard ask about the image; the lesion must then be singled out by its
    class, its place, or as clearly the largest of its class, else the question is left out. Questions that need a known
    organ or side, or a complete image (counts, absences), are left out where these are missing. So are those that the class
    name answers: where a state of an organ lies ("cardiomegaly"), the side of "left effusion"; the organ of a finding of the
    pleura, which lies beside its host; counts of states; counts of more than `MOST_COUNTED` boxes where they would have to be
    listed.

    Args:
        record: the image.
        lesion: one of its lesions, or None.
        stage: easy, medium or hard.
        labels: the classes of the data set, for questions about what is absent.
    """
    if lesion is None:
        return [] if stage == "easy" else list(_absent(record, labels))
    found = _easy(record, lesion, labels) if stage == "easy" else _whole(record, lesion)
    return [ask for ask in found if stage == "hard" or len(counted(record, ask)) <= MOST_COUNTED]


def _absent(record: ImageRecord, labels: Collection[str]) -> Iterator[Ask]:
    if not is_complete(record):
        return
    present = {lesion.label for lesion in record.lesions}
    for label in sorted(set(labels) - present):
        yield Ask("present", "image", label, "no")
        if is_counted(label):
            yield Ask("count", "image", label, "0")
    if not present:
        yield Ask("what", "image", NO_FINDING, NO_FINDING)


def _overlap(one: Lesion, other: Lesion) -> bool:
    """Whether the boxes share any area."""
    mine, theirs = one.box, other.box
    return mine.x0 < theirs.x1 and theirs.x0 < mine.x1 and mine.y0 < theirs.y1 and theirs.y0 < mine.y1


def _easy(record: ImageRecord, lesion: Lesion, labels: Collection[str]) -> Iterator[Ask]:
    label = lesion.label
    yield Ask("what", "box", label, shown(label))
    host = known(lesion.host)
    if host is not None:
        yield Ask("where", "box", label, place(record, host, label))
        if not beside(label, host):
            yield Ask("organ", "box", label, host.organ)
        if host.side and not is_eye(record):
            yield Ask("side", "box", label, host.side)
    yield Ask("present", "box", label, "yes")
    if is_complete(record):  # a class is absent from a box where no box of it reaches in
        here = {other.label for other in record.lesions if _overlap(lesion, other)}
        for absent in sorted(set(labels) - here - {label}):
            yield Ask("present", "box", absent, "no")
    alike = same_class(record, label)
    if is_complete(record) and is_counted(label):
        yield Ask("count", "box", label, str(len(alike)))
        if len(alike) > 1:
            others = max(other.box.area for other in alike if other.lesion_id != lesion.lesion_id)
            if lesion.box.area >= CLEARLY * others:
                yield Ask("compare", "biggest", label, "yes")
            elif others >= CLEARLY * lesion.box.area:
                yield Ask("compare", "biggest", label, "no")


def _whole(record: ImageRecord, lesion: Lesion) -> Iterator[Ask]:
    label = lesion.label
    alike = same_class(record, label)
    classes = sorted({other.label for other in record.lesions})
    host = known(lesion.host)
    tells = (
        not is_counted(label) or side_in(label) is not None
    )  # the name says where: of a state the organ, or the side
    if len(classes) == 1:
        yield Ask("what", "image", label, shown(label))
    elif host is not None and not tells and not beside(label, host):
        place_here = place(record, host)
        there = {other.label for other in record.lesions if known(other.host) is None or _at(record, other, place_here)}
        if there == {label}:
            yield Ask("what", "organ", label, shown(label))
    variant = _singled_out(lesion, alike)
    if variant and host is not None and not tells:
        yield Ask("where", variant, label, place(record, host, label))
        if not beside(label, host):
            yield Ask("organ", variant, label, host.organ)
    if host is not None and host.side:
        if is_eye(record):
            yield Ask("side", "image", label, host.side)
        elif not tells and len({other.host.side if other.host else None for other in alike}) == 1:
            yield Ask("side", "only", label, host.side)
    yield Ask("present", "image", label, "yes")
    if is_complete(record) and is_counted(label):
        yield Ask("count", "image", label, str(len(alike)))
        for other in classes:
            if other != label and is_counted(other):
                yield from _comparisons(record, label, other)


def _at(record: ImageRecord, lesion: Lesion, wanted: str) -> bool:
    return lesion.host is not None and place(record, lesion.host) == wanted


def _singled_out(lesion: Lesion, alike: tuple[Lesion, ...]) -> str:
    if len(alike) == 1:
        return "only"
    others = max(other.box.area for other in alike if other.lesion_id != lesion.lesion_id)
    return "largest" if lesion.box.area >= CLEARLY * others else ""


def _comparisons(record: ImageRecord, label: str, other: str) -> Iterator[Ask]:
    mine, theirs = same_class(record, label), same_class(record, other)
    if len(mine) != len(theirs):
        yield Ask("compare", "number", label, shown(label if len(mine) > len(theirs) else other), other)
    my_area, their_area = largest(mine).box.area, largest(theirs).box.area
    if max(my_area, their_area) >= CLEARLY * min(my_area, their_area):
        yield Ask("compare", "area", label, shown(label if my_area > their_area else other), other)

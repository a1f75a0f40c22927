"""Quality control: what must hold of every row, checked against the record and not against the generator's intentions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from trimtab.medclm.records import ImageRecord, Lesion, Rejected, Row
from trimtab.medclm.texts.asking import ANY_FINDING, BOX_KINDS, NO_FINDING
from trimtab.medclm.texts.wording import NO_BOX, boxes_in, is_eye, known, shown

_BRACKETS = re.compile(r"\[[^\]]*\]")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_WRITTEN_NUMBERS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {word: str(number) for number, word in enumerate(_WRITTEN_NUMBERS.split())}
_ENGLISH_WORDS = "the of is are in to and this that it on at with for what which where how many does show no yes"
_OTHER_WORDS = (
    "der die das und ist ein eine im zeigt nicht mit auf le la les des est une dans et avec pas el los las una es en con que "
    "il lo gli della di non uma um da em het een van niet"
)
_ENGLISH, _OTHERS = frozenset(_ENGLISH_WORDS.split()), frozenset(_OTHER_WORDS.split())


@dataclass(frozen=True)
class Limits:
    """Shortest and longest texts allowed, in characters (ours)."""

    question: tuple[int, int] = (8, 400)
    reasoning: tuple[int, int] = (30, 2000)
    answer: tuple[int, int] = (1, 160)
    boxes: tuple[int, int] = (1, 2000)


@lru_cache(maxsize=512)  # of one row the same few texts are asked for again and again
def normalised(text: str) -> str:
    """Lower case, numbers as digits, everything but letters and digits as single spaces, a space at each end.

    >>> normalised("The hard_exudates; two!")
    ' the hard exudates 2 '
    """
    words = re.findall(r"[^\W_]+", text.lower())
    return f" {' '.join(_NUMBERS.get(word, word) for word in words)} "


def says(text: str, phrase: str) -> bool:
    """Whether `text` holds the words of `phrase` in a row, as whole words: "no" is not in "nodule".

    >>> says("a nodule", "no"), says("No nodule.", "no")
    (False, True)
    """
    return normalised(phrase) in normalised(text)


def conclusion(reasoning: str) -> str:
    """The last sentence.

    >>> conclusion("It is round. It covers 1.5 % of it. So this is a nodule.")
    'So this is a nodule.'
    """
    return _SENTENCE_END.split(reasoning.strip())[-1]


class QualityControl:
    """Checks rows one after the other; rows of one image must come together, since duplicates are looked for within it.

    Args:
        limits: lengths allowed.
    """

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._image = ""
        self._asked: dict[str, str] = {}

    def faults(self, row: Row, record: ImageRecord) -> list[Rejected]:
        """All faults of a row; none means it passes. Reasons are the same words for the same fault, to be counted."""
        lesion = next((found for found in record.lesions if found.lesion_id == row.lesion_id), None)
        found = [*_spans(row), *self._lengths(row), *_language(row), *_source(row, record, lesion)]
        found += [
            *_boxes(row, record, lesion),
            *_answer(row, record, lesion),
            *_reasoning(row, record, lesion),
            *_leak(row),
        ]
        found += self._duplicate(row)
        return [Rejected(file="rows.jsonl", row=row.row_id, reason=reason, value=value) for reason, value in found]

    def _lengths(self, row: Row) -> Iterator[tuple[str, str]]:
        for name, text in (("question", row.question), ("reasoning", row.reasoning), ("answer", row.answer)):
            if name == "reasoning" and row.stage == "hard":
                if text:
                    yield "Hard row has a reasoning", text
                continue
            limit = "boxes" if name == "answer" and row.question_type in BOX_KINDS else name
            low, high = getattr(self.limits, limit)
            if not low <= len(text) <= high:
                yield (
                    f"{name} is too {'short' if len(text) < low else 'long'}",
                    f"{len(text)} characters: {text[:80]!r}",
                )

    def _duplicate(self, row: Row) -> list[tuple[str, str]]:
        earlier = self.seen(row.image_id, row.stage, row.question, row.row_id)
        return [] if earlier == row.row_id else [("same question about the same image", f"as {earlier}")]

    def seen(self, image_id: str, stage: str, question: str, row_id: str) -> str:
        """The first row that asked this question about this image (Hard rows apart from the others)."""
        if image_id != self._image:
            self._image, self._asked = image_id, {}
        return self._asked.setdefault(f"{'hard' if stage == 'hard' else ''}{normalised(question)}", row_id)


def _spans(row: Row) -> Iterator[tuple[str, str]]:
    for name, text in (("reasoning", row.reasoning), ("answer", row.answer)):
        start, end = row.spans[name]  # type: ignore[index]
        if row.target[start:end] != text:
            yield "span does not cut out its text", f"{name} {start, end}"


def _language(row: Row) -> Iterator[tuple[str, str]]:
    for name, text in (("question", row.question), ("reasoning", row.reasoning)):
        foreign = letters = 0
        if not text.isascii():
            letters = sum(map(str.isalpha, text))
            foreign = sum(1 for character in text if ord(character) > 0x24F and character.isalpha())
        words = [word.strip(".,;:?!") for word in text.lower().split()]
        english = sum(word in _ENGLISH for word in words)
        others = sum(word in _OTHERS for word in words)
        if foreign > 0.1 * max(letters, 1) or others > english:
            yield f"{name} is not English", text[:80]


def _source(row: Row, record: ImageRecord, lesion: Lesion | None) -> Iterator[tuple[str, str]]:
    if row.lesion_id is not None and lesion is None:
        yield "row names a lesion its image does not have", row.lesion_id
    if (row.image_id, row.patient, row.split) != (record.image_id, record.patient, record.split):
        yield "row disagrees with its image on patient or split", f"{row.patient} {row.split}"
    if lesion is not None and row.box != lesion.box:
        yield "row has another box than its lesion", str(row.box)


def _asked_for(row: Row, record: ImageRecord) -> list[Lesion]:
    """The lesions that a detection row's answer must name."""
    label = row.domain.rsplit(f" x {record.modality}", 1)[0]
    whole = label == ANY_FINDING and row.row_id.rsplit(f":{row.stage}:", 1)[-1].startswith("detect-all")
    return [one for one in record.lesions if whole or shown(one.label) == label]


def _counted(row: Row, record: ImageRecord) -> list[Lesion]:
    """The lesions that a reasoning must list, because it says how many they are; see `asking.counted`."""
    if row.stage == "hard":
        return []
    if row.question_type == "detect":
        return _asked_for(row, record)
    about = row.row_id.rsplit(f":{row.stage}:", 1)[-1]
    if row.question_type != "count" and not about.startswith(("compare-number", "compare-biggest")):
        return []
    names = {row.domain.rsplit(f" x {record.modality}", 1)[0]}
    if about.startswith("compare-number"):
        other = about.rsplit(":", 1)[-1]
        names |= {shown(one.label) for one in record.lesions if shown(one.label).replace(" ", "-") == other}
    return [one for one in record.lesions if shown(one.label) in names]


def _boxes(row: Row, record: ImageRecord, lesion: Lesion | None) -> Iterator[tuple[str, str]]:
    def is_of(found: tuple[float, ...], one: Lesion | None) -> bool:
        return one is not None and all(abs(a - b) <= 1e-4 for a, b in zip(found, one.box.corners, strict=True))

    def gold(found: tuple[float, ...]) -> bool:
        return is_of(found, lesion)

    listed = _counted(row, record)
    answered = _asked_for(row, record) if row.question_type == "detect" else []
    for name, text in (("question", row.question), ("reasoning", row.reasoning), ("answer", row.answer)):
        quoted = boxes_in(text)
        allowed = listed if name == "reasoning" else answered if name == "answer" else []
        wrong = [found for found in quoted if not gold(found) and not any(is_of(found, one) for one in allowed)]
        if wrong:
            yield f"{name} quotes a box that is not the lesion's", str(wrong[0])
        needed = lesion is not None and (name == "reasoning" and row.stage != "hard")
        if (needed or (name == "question" and row.stage == "easy")) and not any(map(gold, quoted)):
            yield f"{name} does not quote the lesion's box", text[:80]
        if name == "question" and row.stage != "easy" and quoted:
            yield "question about the whole image quotes a box", text[:80]
        left_out = [one for one in allowed if not any(is_of(found, one) for found in quoted)]
        if left_out:
            what = "reasoning counts boxes that it does not quote" if name == "reasoning" else "answer leaves out boxes"
            yield what, f"{len(left_out)} of {len(allowed)}"


def _answer(row: Row, record: ImageRecord, lesion: Lesion | None) -> Iterator[tuple[str, str]]:
    label = row.domain.rsplit(f" x {record.modality}", 1)[0]
    present = {shown(found.label) for found in record.lesions}
    host = known(lesion.host) if lesion is not None else None
    if row.question_type == "what":
        wanted = shown(lesion.label) if lesion is not None else NO_FINDING
        others = sorted(present - {wanted})
        if not says(row.answer, wanted) or any(says(row.answer, other) and not says(wanted, other) for other in others):
            yield "answer names another class than the record", row.answer
        if lesion is None and record.lesions:
            yield "answer denies findings that the record has", row.answer
    elif row.question_type == "present":
        here = shown(lesion.label) == label if row.stage == "easy" and lesion is not None else label in present
        if _yes_or_no(row.answer) != ("yes" if here else "no"):
            yield "yes or no disagrees with the record", f"{row.answer} for {label}"
    elif row.question_type == "count":
        number = sum(shown(found.label) == label for found in record.lesions)
        if re.findall(r"\d+", normalised(row.answer)) != [str(number)]:
            yield "number disagrees with the record", f"{row.answer}, {number} {label}"
    elif row.question_type in ("where", "organ"):
        if host is None or not says(row.answer, host.organ):
            yield "answer names another organ than the record", f"{row.answer}, {host.organ if host else 'unknown'}"
        elif _wrong_side(row.answer, record, lesion):
            yield "text contradicts the record's side", row.answer
    elif row.question_type in BOX_KINDS:
        yield from _box_answer(row, record, lesion)
    elif row.question_type == "side":
        wanted_side = host.side if host is not None else None
        sides = [side for side in ("left", "right", "midline") if says(row.answer, side)]
        if sides != [wanted_side]:
            yield "answer names another side than the record", f"{row.answer}, {wanted_side}"


def _box_answer(row: Row, record: ImageRecord, lesion: Lesion | None) -> Iterator[tuple[str, str]]:
    """Every box with its own class and once; the objects are the answer."""
    wanted = _asked_for(row, record) if row.question_type == "detect" else [lesion] if lesion is not None else []
    said = [] if row.answer == NO_BOX else row.answer.split("; ")
    found = [(part.rpartition(" [")[0], boxes_in(part)) for part in said]
    labels = sorted(shown(one.label) for one in wanted if one is not None)
    if sorted(label for label, _ in found) != labels or any(len(boxes) != 1 for _, boxes in found):
        yield "answer names other boxes than the record", row.answer[:80]
    elif sorted(one.lesion_id for one in row.objects) != sorted(one.lesion_id for one in wanted if one is not None):
        yield "objects are not what the answer names", row.answer[:80]
    else:
        for label, ((x0, y0, x1, y1),) in found:
            near = [one for one in wanted if one is not None and shown(one.label) == label]
            if not any(
                all(abs(a - b) <= 1e-4 for a, b in zip((x0, y0, x1, y1), one.box.corners, strict=True)) for one in near
            ):
                yield "answer gives a box another class than the record", f"{label} {x0, y0, x1, y1}"


def _yes_or_no(answer: str) -> str | None:
    found = [word for word in ("yes", "no") if says(answer, word)]
    return found[0] if len(found) == 1 else None


def _wrong_side(text: str, record: ImageRecord, lesion: Lesion | None) -> bool:
    """Whether a text puts the lesion on the patient's other side (or in the other eye)."""
    side = lesion.host.side if lesion is not None and lesion.host is not None else None
    if side not in ("left", "right"):
        return False
    other = "left" if side == "right" else "right"
    phrases = (
        [f"{other} eye"]
        if is_eye(record)
        else [f"patient's {other}", *(o for o in record.organs if o.startswith(other))]
    )
    return any(says(text, phrase) for phrase in phrases)


def _reasoning(row: Row, record: ImageRecord, lesion: Lesion | None) -> Iterator[tuple[str, str]]:
    if row.stage == "hard":
        return
    if _wrong_side(row.reasoning, record, lesion):
        yield "text contradicts the record's side", row.reasoning[-80:]
    last = conclusion(row.reasoning)
    if not _agrees(last, row):
        yield "answer does not follow from the reasoning's conclusion", f"{last!r} -> {row.answer!r}"


def _agrees(last: str, row: Row) -> bool:
    if row.question_type in ("present",) or row.answer in ("yes", "no"):
        return _yes_or_no(last) == _yes_or_no(row.answer)
    if row.question_type == "count":
        numbers = re.findall(r"\d+", normalised(_BRACKETS.sub(" ", last)))
        return set(numbers) == set(re.findall(r"\d+", normalised(row.answer)))
    return says(last, row.answer)


def _leak(row: Row) -> Iterator[tuple[str, str]]:
    question = _BRACKETS.sub(" ", row.question)
    if row.question_type in ("what", "where", "organ"):
        leaked = says(question, row.answer)
    elif row.question_type == "side":
        leaked = [side for side in ("left", "right", "midline") if says(question, side)] == [row.answer]
    elif row.question_type == "count":
        leaked = says(question, row.answer)
    else:
        leaked = False
    if leaked:
        yield "question gives the answer away", row.question

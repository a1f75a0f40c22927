"""How boxes are written in the texts of a row: as the set keeps them, or as a model writes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from trimtab.medclm.boxes import FORMATS, FormatName, ModelBoxes
from trimtab.medclm.records import Box, ImageRecord, Row, Step
from trimtab.medclm.texts.asking import BOX_KINDS
from trimtab.medclm.texts.generator import target_of
from trimtab.medclm.texts.steps import sentences
from trimtab.medclm.texts.wording import quoted

Dialect = FormatName
DIALECTS: tuple[str, ...] = tuple(FORMATS)
_QUOTED = re.compile(r"\[\d\.\d{4}, \d\.\d{4}, \d\.\d{4}, \d\.\d{4}\]")


def in_dialect(row: Row, record: ImageRecord, dialect: Dialect | ModelBoxes) -> Row:
    """`row` with every box written as the dialect does in all texts, and the spans and steps that follow from it.

    The answer of a referring or detection row becomes the dialect's own: its objects, listed.

    Args:
        row: the row.
        record: its image.
        dialect: name of a format, or a format with the resizing of a model (`boxes.boxes_of`).

    Raises:
        ValueError: no such format; a text quotes a box that no lesion of the image has.
    """
    boxes = dialect if isinstance(dialect, ModelBoxes) else ModelBoxes.named(dialect)
    if boxes.format.name == "unit":
        return row
    seen = boxes.seen(record.width, record.height)
    answer = None
    if row.question_type in BOX_KINDS:
        answer = boxes.format.answer([(one.label, one.box) for one in row.objects], seen)
    return replaced(row, record, lambda box: boxes.format.inline(box, seen), answer)


def replaced(row: Row, record: ImageRecord, write: Callable[[Box], str], answer: str | None = None) -> Row:
    """`row` with each quoted box replaced by what `write` makes of the lesion's box; in the order of the text.

    Args:
        row: the row.
        record: its image, which says of each quoted box which exact one it is.
        write: text of a box.
        answer: taken instead of the row's.

    Raises:
        ValueError: a text quotes a box that no lesion of the image has.
    """
    exact = {quoted(lesion.box): lesion.box for lesion in record.lesions}

    def text_of(found: re.Match[str]) -> str:
        if found[0] not in exact:
            raise ValueError(f"row {row.row_id!r} quotes {found[0]}, the box of no lesion of its image")
        return write(exact[found[0]])

    question, reasoning, said = (_QUOTED.sub(text_of, text) for text in (row.question, row.reasoning, row.answer))
    said = said if answer is None else answer
    target, reasoning_span, answer_span = target_of(reasoning, said)
    changed = {"question": question, "reasoning": reasoning, "answer": said, "target": target}
    spans = {"reasoning": reasoning_span, "answer": answer_span}
    return row.model_copy(update={**changed, "spans": spans, "steps": _moved(row.steps, reasoning, reasoning_span[0])})


def _moved(steps: Sequence[Step], reasoning: str, start: int) -> tuple[Step, ...]:
    """The steps at the sentences' new places; their objects stay."""
    if not steps:
        return ()
    places = [(start + low, start + high) for low, high in sentences(reasoning)]
    return tuple(one.model_copy(update={"span": place}) for one, place in zip(steps, places, strict=True))

"""How boxes are written in texts: fractions, thousandths, or pixels of the picture as a model resizes it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Literal

from trimtab.medclm.records import Box, ImageRecord, Row
from trimtab.medclm.texts.generator import target_of
from trimtab.medclm.texts.wording import quoted

Dialect = Literal["unit", "thousand", "qwen2.5"]
DIALECTS: tuple[Dialect, ...] = ("unit", "thousand", "qwen2.5")
_QUOTED = re.compile(r"\[\d\.\d{4}, \d\.\d{4}, \d\.\d{4}, \d\.\d{4}\]")

QWEN_FACTOR = 28
QWEN_LEAST, QWEN_MOST = 56 * 56, 28 * 28 * 1280
"""Pixels of the resized picture, the defaults of Qwen2-VL's and Qwen2.5-VL's image processor (arXiv 2502.13923)."""


def resized(width: int, height: int, least: int = QWEN_LEAST, most: int = QWEN_MOST) -> tuple[int, int]:
    """(width, height) to which Qwen2.5-VL resizes a picture: multiples of 28, `least` to `most` pixels.

    As the image processor of transformers does; a side below 14 pixels rounds to 0 there, so that the picture is enlarged.

    Raises:
        ValueError: one side is more than 200 times the other, which that model refuses.

    >>> resized(768, 510)
    (756, 504)
    """
    if max(width, height) > 200 * min(width, height):
        raise ValueError(f"image of {width} x {height}: Qwen2.5-VL takes no picture longer than 200 times its width")
    wide, high = (round(side / QWEN_FACTOR) * QWEN_FACTOR for side in (width, height))
    if wide * high > most:
        scale = math.sqrt(width * height / most)
        wide, high = (
            max(QWEN_FACTOR, math.floor(side / scale / QWEN_FACTOR) * QWEN_FACTOR) for side in (width, height)
        )
    elif wide * high < least:
        scale = math.sqrt(least / (width * height))
        wide, high = (math.ceil(side * scale / QWEN_FACTOR) * QWEN_FACTOR for side in (width, height))
    return wide, high


def written(box: Box, width: int, height: int, dialect: Dialect) -> str:
    """A box as the dialect writes it: [x0, y0, x1, y1].

    Args:
        box: the box.
        width: of the image in pixels.
        height: of the image in pixels.
        dialect: "unit" (0-1, four decimals), "thousand" (0-1000, whole), "qwen2.5" (whole pixels of the resized image).

    >>> written(Box(x0=0.25, y0=0.5, x1=0.5, y1=1.0), 768, 510, "thousand")
    '[250, 500, 500, 1000]'
    >>> written(Box(x0=0.25, y0=0.5, x1=0.5, y1=1.0), 768, 510, "qwen2.5")
    '[189, 252, 378, 504]'
    """
    if dialect == "unit":
        return quoted(box)
    wide, high = (1000, 1000) if dialect == "thousand" else resized(width, height)
    x0, y0, x1, y1 = box.corners
    return f"[{round(x0 * wide)}, {round(y0 * high)}, {round(x1 * wide)}, {round(y1 * high)}]"


def in_dialect(row: Row, record: ImageRecord, dialect: Dialect) -> Row:
    """`row` with every box written as the dialect does in all texts, and the spans that follow from it."""
    if dialect == "unit":
        return row
    return replaced(row, record, lambda box: written(box, record.width, record.height, dialect))


def replaced(row: Row, record: ImageRecord, write: Callable[[Box], str]) -> Row:
    """`row` with each quoted box replaced by what `write` makes of the lesion's box; in the order of the text.

    Args:
        row: the row.
        record: its image, which says of each quoted box which exact one it is.
        write: text of a box.

    Raises:
        ValueError: a text quotes a box that no lesion of the image has.
    """
    exact = {quoted(lesion.box): lesion.box for lesion in record.lesions}

    def text_of(found: re.Match[str]) -> str:
        if found[0] not in exact:
            raise ValueError(f"row {row.row_id!r} quotes {found[0]}, the box of no lesion of its image")
        return write(exact[found[0]])

    question, reasoning, answer = (_QUOTED.sub(text_of, text) for text in (row.question, row.reasoning, row.answer))
    target, reasoning_span, answer_span = target_of(reasoning, answer)
    changed = {"question": question, "reasoning": reasoning, "answer": answer, "target": target}
    return row.model_copy(update={**changed, "spans": {"reasoning": reasoning_span, "answer": answer_span}})

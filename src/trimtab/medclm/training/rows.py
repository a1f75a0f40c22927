"""Rows with their images, as the trainer and the evaluation read them; boxes are drawn on demand."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw
from torch.utils.data import Dataset

from trimtab.medclm.boxes import ModelBoxes
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.building.dialects import in_dialect
from trimtab.medclm.records import Box, Row, SplitName
from trimtab.medclm.texts.generator import target_of

BOX_COLOUR = (255, 40, 40)


@dataclass(frozen=True)
class Example:
    """A row and the file of its image."""

    row: Row
    image: Path


def examples_of(folder: DataSetFolder, splits: Iterable[SplitName]) -> list[Example]:
    """The rows of these splits, in order.

    Raises:
        ValueError: there are none, or the build did not finish.
    """
    folder.finished()
    wanted = set(splits)
    found = [Example(row, folder.path / image) for row, image in folder.rows() if row.split in wanted]
    if not found:
        raise ValueError(f"{folder.path} has no rows of the splits {', '.join(sorted(wanted))}")
    return found


def as_written(folder: DataSetFolder, examples: Sequence[Example], boxes: ModelBoxes) -> list[Example]:
    """The examples with every box in their texts as a model writes it; see `building.dialects.in_dialect`."""
    wanted = {one.row.image_id for one in examples}
    records = {record.image_id: record for record in folder.records() if record.image_id in wanted}
    return [replace(one, row=in_dialect(one.row, records[one.row.image_id], boxes)) for one in examples]


def asked_plainly(examples: Sequence[Example], share: float, seed: int = 0) -> list[Example]:
    """The examples, of which this share of those with reasoning, chosen by a hash of row and seed, want the answer only [ours].

    Stage, box and question stay. What the answer owes to the picture then has its own gradient; after a reasoning that ends on
    the answer it has almost none.
    """
    return [
        replace(one, row=_plain(one.row)) if one.row.reasoning and _drawn(one.row.row_id, seed) < share else one
        for one in examples
    ]


def _drawn(name: str, seed: int) -> float:
    return int.from_bytes(hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=4).digest()) / 2**32


def _plain(row: Row) -> Row:
    target, reasoning, answer = target_of("", row.answer)
    return row.model_copy(
        update={"reasoning": "", "target": target, "spans": {"reasoning": reasoning, "answer": answer}}
    )


def with_box(picture: Image.Image, box: Box) -> Image.Image:
    """A copy of the picture with the box's outline in red, 1/128 of the longer side wide and at least one pixel (ours)."""
    copy = picture.convert("RGB")
    if copy is picture:
        copy = picture.copy()
    x0, y0, x1, y1 = box.pixels(copy.width, copy.height)
    ImageDraw.Draw(copy).rectangle((x0, y0, x1 - 1, y1 - 1), outline=BOX_COLOUR, width=max(max(copy.size) // 128, 1))
    return copy


class RowData(Dataset[dict[str, Any]]):
    """Map-style data set of {"row", "image"}: image as RGB, with the box drawn where the row is Easy.

    Args:
        examples: the rows.
        draw_boxes: draw the boxes of Easy rows.
    """

    def __init__(self, examples: Sequence[Example], *, draw_boxes: bool = True) -> None:
        self.examples = list(examples)
        self.draw_boxes = draw_boxes

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, place: int) -> dict[str, Any]:
        example = self.examples[place]
        with Image.open(example.image) as file:
            picture = file.convert("RGB")
        if self.draw_boxes and example.row.stage == "easy" and example.row.box is not None:
            picture = with_box(picture, example.row.box)
        return {"row": example.row, "image": picture}

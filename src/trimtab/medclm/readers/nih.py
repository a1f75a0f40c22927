"""NIH ChestX-ray14: BBox_List_2017.csv, boxes in pixels of 1024 x 1024, and Data_Entry_2017.csv for the negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trimtab.inputs import shortened
from trimtab.medclm.files import (
    Damaged,
    PictureIndex,
    csv_rows,
    csv_table,
    number,
)
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected

SIDE = 1024.0


class NihReader(ReaderOptions):
    """NIH's box list, read by position: file, class, x, y, width, height. "Infiltrate" is called "Infiltration".

    The patient is the number before the underscore of the file name. Images without a box are not negatives: most have
    findings nobody drew. With `entries` those labelled "No Finding" are added as negatives.

    Attributes:
        entries: Data_Entry_2017.csv, or None.
    """

    modality: str = "chest X-ray"
    patient_pattern: str = r"^(\d+)_"
    entries: Path | None = None

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, in the order of their first row, then the negatives.

        Raises:
            FileNotFoundError, NotADirectoryError: a file or the folder is missing.
            ValueError: the list has fewer than six columns, or `entries` lacks a column.
        """
        index = PictureIndex(images)
        header, lines = csv_table(annotations)
        if len(header) < 6:
            raise ValueError(
                f"{annotations}: file, class, x, y, width, height are needed; the header has {shortened(header, 500)}"
            )
        boxes: dict[str, list[RawBox]] = {}
        damaged: Counter[str] = Counter()
        for line in lines:
            if isinstance(line, Damaged):
                yield line.rejected
                damaged.update({index.find(name) or name for name in line.fields})
                continue
            row, fields = line
            x, y, w, h = (number(field) for field in fields[2:6])
            label = "Infiltration" if fields[1] == "Infiltrate" else fields[1]
            box = RawBox(row.removeprefix("line "), label, (x, y, x + w, y + h), row)
            boxes.setdefault(index.find(fields[0]) or fields[0], []).append(box)
        boxed = set(boxes) | set(damaged)
        for file in list(boxes):
            found = boxes.pop(file)
            image = _image(file, annotations.name, found[0].row, broken=damaged[file])
            yield from assembled(image, found, images, self)
        if self.entries is not None:
            yield from self._negatives(self.entries, boxed, index, annotations.stem, images)

    def _negatives(
        self, entries: Path, boxed: set[str], index: PictureIndex, source: str, images: Path
    ) -> Iterator[ImageRecord | Rejected]:
        normal: dict[str, str] = {}
        found: set[str] = set()
        for line in csv_rows(entries, ("Image Index", "Finding Labels")):
            if isinstance(line, Damaged):
                yield line.rejected
                found.update(index.find(name) or name for name in line.fields)
                continue
            row, fields = line
            name = index.find(fields["Image Index"]) or fields["Image Index"]
            if fields["Finding Labels"] != "No Finding":
                found.add(name)  # findings nobody drew: neither lesions nor negatives, as the class says
            else:
                normal.setdefault(name, row)
        for name, row in normal.items():
            if name in boxed:
                value = f"{name} has boxes in the list"
                yield Rejected(file=entries.name, row=row, reason="image is called normal but has boxes", value=value)
            elif name in found:
                reason = "image is called normal but has findings in another row, or in one that cannot be read"
                yield Rejected(file=entries.name, row=row, reason=reason, value=name)
            else:
                yield from assembled(_image(name, entries.name, row, source), [], images, self)


def _image(file: str, table: str, row: str, source: str = "", broken: int = 0) -> RawImage:
    return RawImage(Path(file).stem, file, table, row, base=(SIDE, SIDE), source=source, broken=broken)

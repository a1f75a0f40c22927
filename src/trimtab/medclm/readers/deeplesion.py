"""DeepLesion: DL_info.csv, boxes on key slices of CT, read by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trimtab.inputs import shortened
from trimtab.medclm.files import (
    Damaged,
    csv_table,
    number,
    whole,
)
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected

TYPES = ("bone", "abdomen", "mediastinum", "liver", "lung", "kidney", "soft tissue", "pelvis")
SPLITS = {"1": "train", "2": "validation", "3": "test"}
_FILE, _PATIENT, _BOX, _TYPE, _NOISY, _SIZE, _SPLIT = 0, 1, 6, 9, 10, 13, 17


class DeepLesionReader(ReaderOptions):
    """DeepLesion's table (arXiv 1710.01766). Coordinates start at 1, so 1 is taken off; noisy rows are rejected.

    "000001_01_01_109.png" is the slice 109.png in the folder 000001_01_01. The class is "{type} lesion"; the type is
    known only for the authors' validation and test rows, the others are "lesion" with the flag "type_unknown".
    There are no negatives: only key slices are annotated.
    """

    modality: str = "CT"

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records slice by slice, in the order of their first row.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the table has fewer than 18 columns.
        """
        header, lines = csv_table(annotations)
        if len(header) <= _SPLIT:
            raise ValueError(
                f"{annotations}: DL_info.csv has 18 columns; the header has {len(header)}: {shortened(header, 500)}"
            )
        slices: dict[str, list[tuple[str, list[str]]]] = {}
        damaged: Counter[str] = Counter()
        for line in lines:
            if isinstance(line, Damaged):
                yield line.rejected
                damaged.update(set(line.fields))
            else:
                slices.setdefault(line[1][_FILE], []).append(line)
        for name in list(slices):
            yield from self._slice(name, slices.pop(name), annotations.name, images, damaged[name])

    def _slice(
        self, name: str, rows: list[tuple[str, list[str]]], file: str, images: Path, broken: int
    ) -> Iterator[ImageRecord | Rejected]:
        folder, separator, number_of_slice = name.rpartition("_")
        boxes: list[RawBox] = []
        for row, fields in rows:
            corners = [number(part) for part in fields[_BOX].split(",")]
            kind, reason, value = whole(fields[_TYPE]), "", fields[_BOX]
            if fields[_NOISY] == "1":
                reason = "row is flagged as noisy"
            elif len(corners) != 4:
                reason = "box is not four numbers"
            elif kind is None or kind not in (-1, *range(1, len(TYPES) + 1)):
                reason, value = "lesion type is not -1 or 1 to 8", fields[_TYPE]
            if reason or kind is None:
                broken += 1
                yield Rejected(file=file, row=row, reason=reason, value=value)
                continue
            label = "lesion" if kind == -1 else f"{TYPES[kind - 1]} lesion"
            x0, y0, x1, y1 = (corner - 1 for corner in corners)
            flags = ("type_unknown",) if kind == -1 else ()
            boxes.append(RawBox(row.removeprefix("line "), label, (x0, y0, x1, y1), row, flags))
        first, fields = rows[0]
        stated = [part.strip() for part in fields[_SIZE].split(",")]
        sizes = [whole(part) for part in stated if part.lower() not in ("", "nan")]
        if not separator or len(stated) != 2 or any(size is None or size < 1 for size in sizes):
            value = f"{name} {fields[_SIZE]}"
            yield Rejected(file=file, row=first, reason="row has no file name or image size", value=value)
            return
        image = RawImage(
            image_id=Path(name).stem,
            file=f"{folder}/{number_of_slice}",
            annotations=file,
            row=first,
            patient=fields[_PATIENT],
            declared=(sizes[0], sizes[1]) if len(sizes) == 2 and sizes[0] and sizes[1] else None,
            split=SPLITS.get(fields[_SPLIT], fields[_SPLIT]),
            broken=broken,
        )
        yield from assembled(image, boxes, images, self)

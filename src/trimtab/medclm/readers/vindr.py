"""VinDr-CXR: a row per box and radiologist; boxes of several radiologists are merged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

from pydantic import Field

from trimtab.medclm.files import (
    Damaged,
    PictureIndex,
    csv_rows,
    number,
)
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled, checked_box, checked_size
from trimtab.medclm.records import Box, ImageRecord, Rejected

NO_FINDING = "No finding"


@dataclass(slots=True)
class _Marked:
    row: str
    label: str
    radiologist: str | None
    corners: tuple[float, float, float, float]
    box: Box | None = None


class VindrReader(ReaderOptions):
    """VinDr-CXR csv: image_id, class_name, x_min, y_min, x_max, y_max; rad_id (PhysioNet: rad_ID), width and height if present.

    Boxes of one class by several radiologists are merged by weighted boxes fusion (arXiv 1910.13302) with equal weights;
    the flag "readers_2_of_3" tells how many of those who read the image drew it. An image all of whose rows say "No finding"
    is a negative. Without rad_id, as in PhysioNet's test set, rows are a consensus and stay as they are.
    Coordinates count pixels of the original picture: width and height give its size where the pictures at hand are scaled.

    Attributes:
        fusion_iou: boxes whose intersection over union is above this are one; 0.5 (ours).
        least_readers: merged boxes drawn by fewer are rejected; 1 keeps all.
    """

    modality: str = "chest X-ray"
    fusion_iou: float = Field(0.5, gt=0, lt=1)
    least_readers: int = Field(1, ge=1)

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, in the order of their first row.

        Raises:
            FileNotFoundError, NotADirectoryError: the file or the folder is missing.
            ValueError: a column is missing.
        """
        index = PictureIndex(images)
        rows: dict[str, list[_Marked]] = {}
        bases: dict[str, set[tuple[float, float]]] = {}
        ids: dict[str, str] = {}
        damaged: Counter[str] = Counter()
        columns = ("image_id", "class_name", "x_min", "y_min", "x_max", "y_max")
        for line in csv_rows(annotations, columns, optional=("rad_id", "width", "height")):
            if isinstance(line, Damaged):
                yield line.rejected
                damaged.update({index.find(name) or name for name in line.fields})
                continue
            row, fields = line
            file = index.find(fields["image_id"]) or fields["image_id"]
            ids.setdefault(file, fields["image_id"])
            corners = tuple(number(fields[key]) for key in ("x_min", "y_min", "x_max", "y_max"))
            marked = _Marked(row, fields["class_name"], fields.get("rad_id"), corners)  # type: ignore[arg-type]
            rows.setdefault(file, []).append(marked)
            if "width" in fields and "height" in fields:
                base = (number(fields["width"]), number(fields["height"]))
                bases.setdefault(file, set()).add(base)
        for file in list(rows):
            image = RawImage(ids[file], file, annotations.name, rows[file][0].row, broken=damaged[file])
            yield from self._image(image, rows.pop(file), bases.pop(file, set()), images)

    def _image(
        self, image: RawImage, marked: Sequence[_Marked], bases: set[tuple[float, float]], images: Path
    ) -> Iterator[ImageRecord | Rejected]:
        file = image.annotations
        base = next(iter(bases)) if len(bases) == 1 else None
        if len(bases) > 1 or (base is not None and not all(isfinite(side) and side > 0 for side in base)):
            agree = len(bases) == 1
            reason = "width and height are no numbers above 0" if agree else "rows of an image disagree on its size"
            yield Rejected(file=file, row=image.row, reason=reason, value=str(bases)[:200])
            return
        image = replace(image, base=base)
        frame = checked_size(image, images, self, boxed=any(mark.label != NO_FINDING for mark in marked))
        if isinstance(frame, Rejected):
            yield frame
            return
        width, height = base or (frame.width, frame.height)
        broken = image.broken
        usable = []
        for mark in marked:
            if mark.label == NO_FINDING:
                continue
            if not mark.label:
                broken += 1
                yield Rejected(file=file, row=mark.row, reason="row without class name")
                continue
            checked = checked_box(mark.corners, width, height, clip=self.clip)
            if isinstance(checked[0], Box):
                mark.box = checked[0]
                usable.append(mark)
            else:
                broken += 1
                yield Rejected(file=file, row=mark.row, reason=checked[0], value=str(checked[1]))
        boxes: list[RawBox] = []
        readers = sorted({mark.radiologist for mark in marked if mark.radiologist is not None})
        if not readers:
            boxes = [RawBox(mark.row.removeprefix("line "), mark.label, mark.corners, mark.row) for mark in usable]
        for raw, agreeing in self._merged(usable, readers, width, height) if readers else ():
            if agreeing < self.least_readers:
                broken += 1
                value = f"{raw.label}: {agreeing} of {len(readers)}"
                yield Rejected(file=file, row=raw.row, reason="box drawn by too few readers", value=value)
            else:
                boxes.append(raw)
        yield from assembled(replace(image, broken=broken), boxes, images, self, frame=frame)

    def _merged(
        self, marked: Sequence[_Marked], readers: Sequence[str], width: float, height: float
    ) -> Iterator[tuple[RawBox, int]]:
        from ensemble_boxes import weighted_boxes_fusion

        if not marked:
            return
        labels = sorted({mark.label for mark in marked})
        of_reader = [[mark for mark in marked if mark.radiologist == reader] for reader in readers]
        corners, _, kinds = weighted_boxes_fusion(
            [[list(mark.box.corners) for mark in marks if mark.box] for marks in of_reader],
            [[1.0] * len(marks) for marks in of_reader],
            [[labels.index(mark.label) for mark in marks] for marks in of_reader],
            iou_thr=self.fusion_iou,
        )
        merged = sorted(zip(kinds.tolist(), corners.tolist(), strict=True))
        members: list[list[_Marked]] = [[] for _ in merged]
        for mark in marked:
            overlaps = [
                _iou(corner, mark.box.corners) if mark.box and labels[int(kind)] == mark.label else -1.0
                for kind, corner in merged
            ]
            members[overlaps.index(max(overlaps))].append(mark)
        for number_of_box, ((kind, corner), marks) in enumerate(zip(merged, members, strict=True), start=1):
            agreeing = len({mark.radiologist for mark in marks})
            row = (
                marks[0].row + "".join(f"+{mark.row.removeprefix('line ')}" for mark in marks[1:])
                if marks
                else "merged"
            )
            x0, y0, x1, y1 = corner
            raw = RawBox(
                key=str(number_of_box),
                label=labels[int(kind)],
                corners=(x0 * width, y0 * height, x1 * width, y1 * height),
                row=row,
                flags=(f"readers_{agreeing}_of_{len(readers)}",),
            )
            yield raw, agreeing


def _iou(first: Sequence[float], second: Sequence[float]) -> float:
    across = max(0.0, min(first[2], second[2]) - max(first[0], second[0]))
    down = max(0.0, min(first[3], second[3]) - max(first[1], second[1]))
    areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (first, second))
    return across * down / (areas - across * down)

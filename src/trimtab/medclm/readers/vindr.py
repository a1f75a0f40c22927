"""VinDr-CXR: a row per box and radiologist; boxes of several radiologists are merged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from trimtab.medclm.readers.files import PictureIndex, csv_rows, number
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled, checked_box, checked_size
from trimtab.medclm.records import Box, ImageRecord, Rejected

NO_FINDING = "No finding"


@dataclass(slots=True)
class _Marked:
    row: str
    label: str
    radiologist: str
    corners: tuple[float, float, float, float]
    box: Box | None = None


class VindrReader(ReaderOptions):
    """VinDr-CXR csv: image_id, class_name, rad_id, x_min, y_min, x_max, y_max; columns width and height if present.

    Boxes of one class by several radiologists are merged by weighted boxes fusion (arXiv 1910.13302) with equal weights;
    the flag "readers_2_of_3" tells how many of those who read the image drew it. An image all of whose rows say "No finding"
    is a negative. Coordinates count pixels of the original picture: width and height give its size where the
    pictures at hand are scaled.

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
        for line in csv_rows(annotations, ("image_id", "class_name", "rad_id", "x_min", "y_min", "x_max", "y_max")):
            if isinstance(line, Rejected):
                yield line
                continue
            row, fields = line
            corners = tuple(number(fields[key]) for key in ("x_min", "y_min", "x_max", "y_max"))
            marked = _Marked(row, fields["class_name"], fields["rad_id"], corners)  # type: ignore[arg-type]
            rows.setdefault(fields["image_id"], []).append(marked)
            if "width" in fields and "height" in fields:
                base = (number(fields["width"]), number(fields["height"]))
                bases.setdefault(fields["image_id"], set()).add(base)
        for image_id in list(rows):
            yield from self._image(
                image_id, rows.pop(image_id), bases.pop(image_id, set()), index, annotations.name, images
            )

    def _image(
        self,
        image_id: str,
        marked: Sequence[_Marked],
        bases: set[tuple[float, float]],
        index: PictureIndex,
        file: str,
        images: Path,
    ) -> Iterator[ImageRecord | Rejected]:
        base = next(iter(bases)) if len(bases) == 1 else None
        if len(bases) > 1 or (base is not None and not (base[0] > 0 and base[1] > 0)):
            yield Rejected(
                file=file, row=marked[0].row, reason="rows of an image disagree on its size", value=str(bases)
            )
            return
        image = RawImage(image_id, index.find(image_id) or image_id, file, marked[0].row, base=base)
        size = checked_size(image, images)
        if isinstance(size, Rejected):
            yield size
            return
        width, height = base or size
        broken = 0
        usable = []
        for mark in marked:
            if mark.label == NO_FINDING:
                continue
            if not mark.label:
                broken += 1
                yield Rejected(file=file, row=mark.row, reason="row without class name")
                continue
            checked = checked_box(mark.corners, width, height, self.clip)
            if isinstance(checked[0], Box):
                mark.box = checked[0]
                usable.append(mark)
            else:
                broken += 1
                yield Rejected(file=file, row=mark.row, reason=checked[0], value=str(checked[1]))
        readers = sorted({mark.radiologist for mark in marked})
        boxes: list[RawBox] = []
        for raw, agreeing in self._merged(usable, readers, width, height):
            if agreeing < self.least_readers:
                broken += 1
                value = f"{raw.label}: {agreeing} of {len(readers)}"
                yield Rejected(file=file, row=raw.row, reason="box drawn by too few readers", value=value)
            else:
                boxes.append(raw)
        image = RawImage(image_id, image.file, file, image.row, base=base, broken=broken)
        yield from assembled(image, boxes, images, self)

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

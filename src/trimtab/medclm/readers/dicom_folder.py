"""A folder of DICOM images with a table of boxes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.medclm.dicoms import DICOM_SUFFIXES, PictureError, dicom, text_of
from trimtab.medclm.files import (
    Damaged,
    PictureIndex,
    csv_rows,
    number,
)
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected

MODALITIES = {
    "CR": "radiograph", "DX": "radiograph", "MG": "mammogram", "CT": "CT", "MR": "MR", "US": "ultrasound", "OP": "photograph",
}  # fmt: skip


class DicomReader(ReaderOptions):
    """DICOM files (.dcm, .dicom) and a csv: image, label, x_min, y_min, x_max, y_max in pixels, x_max and y_max exclusive.

    `image` is a path, a file name, or a SOPInstanceUID. A row with an empty label and empty corners says "no finding".
    Files no row speaks of are rejected, because nobody said they are normal. The patient is a hash of PatientID; no
    other header entry but Modality is kept.

    Attributes:
        modality: "" takes the file's own, in words.
    """

    modality: str = ""

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, by path.

        Raises:
            FileNotFoundError, NotADirectoryError: the file or the folder is missing.
            ValueError: a column is missing.
        """
        index = PictureIndex(images)
        headers: dict[str, Any] = {}
        by_uid: dict[str, str] = {}
        for file in index.files:
            if Path(file).suffix.lower() in DICOM_SUFFIXES:
                try:
                    headers[file] = _kept(dicom(images / file, pixels=False))
                except PictureError as error:
                    yield Rejected(file=file, row="", reason="image is unreadable", value=str(error))
                    continue
                uid = headers[file]["uid"]
                if uid in by_uid:
                    value = f"{uid}: also {by_uid[uid]}"
                    yield Rejected(file=file, row="", reason="SOPInstanceUID occurs twice", value=value)
                    del headers[file]
                elif uid:
                    by_uid[uid] = file
        rows: dict[str, list[RawBox]] = {}
        empty: dict[str, str] = {}
        for line in csv_rows(annotations, ("image", "label", "x_min", "y_min", "x_max", "y_max")):
            if isinstance(line, Damaged):
                yield line.rejected
                for name in line.fields:
                    spoken_of = by_uid.get(name) or index.find(name) or ""
                    if spoken_of in headers:
                        headers[spoken_of]["broken"] += 1
                continue
            row, fields = line
            found = by_uid.get(fields["image"]) or index.find(fields["image"])
            corners = [fields[key] for key in ("x_min", "y_min", "x_max", "y_max")]
            if found not in headers:
                yield Rejected(file=annotations.name, row=row, reason="image is missing", value=fields["image"])
            elif not fields["label"] and not any(corners):
                empty[found] = row
            elif not fields["label"]:
                yield Rejected(file=annotations.name, row=row, reason="row without class name", value=fields["image"])
                headers[found]["broken"] += 1
            else:
                x0, y0, x1, y1 = (number(corner) for corner in corners)
                rows.setdefault(found, []).append(
                    RawBox(row.removeprefix("line "), fields["label"], (x0, y0, x1, y1), row)
                )
        for file, header in headers.items():
            boxes = rows.pop(file, [])
            if not boxes and file not in empty and not header["broken"]:
                reason = "no row speaks of the image; a row with an empty label would make it a negative"
                yield Rejected(file=annotations.name, row="", reason=reason, value=file)
            elif boxes and file in empty:
                reason = "image is called normal but has boxes"
                yield Rejected(file=annotations.name, row=empty[file], reason=reason, value=file)
            else:
                yield from self._image(file, header, boxes, annotations.name, images)

    def _image(
        self, file: str, header: dict[str, Any], boxes: list[RawBox], table: str, images: Path
    ) -> Iterator[ImageRecord | Rejected]:
        image = RawImage(
            image_id=Path(file).with_suffix("").as_posix(),
            file=file,
            annotations=table,
            row=boxes[0].row if boxes else "image",
            patient=header["patient"],
            broken=header["broken"],
        )
        options = self if self.modality else self.model_copy(update={"modality": header["modality"]})
        yield from assembled(image, boxes, images, options)


def _kept(header: Any) -> dict[str, Any]:
    patient, modality = text_of(header, "PatientID"), text_of(header, "Modality")
    return {
        "uid": text_of(header, "SOPInstanceUID"),
        "patient": hashlib.blake2b(patient.encode("utf-8", "replace"), digest_size=8).hexdigest() if patient else "",
        "modality": MODALITIES.get(modality, modality or "image"),
        "broken": 0,
    }

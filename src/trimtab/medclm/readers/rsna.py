"""RSNA Pneumonia Detection Challenge: stage_2_train_labels.csv, boxes of lung opacity in pixels of the DICOM images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from trimtab.medclm.files import (
    Damaged,
    PictureIndex,
    csv_rows,
    number,
)
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected


class RsnaReader(ReaderOptions):
    """RSNA's csv: patientId, x, y, width, height, Target; a row per box, empty coordinates where Target is 0.

    Target 0 says "no pneumonia", not "normal". With `classes` only images of class "Normal" are negatives and those of class
    "No Lung Opacity / Not Normal" are rejected; without it all images of Target 0 are negatives for lung opacity.

    Attributes:
        label: class name of the boxes.
        classes: stage_2_detailed_class_info.csv, or None.
    """

    modality: str = "chest X-ray"
    label: str = "lung opacity"
    classes: Path | None = None

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, in the order of their first row.

        Raises:
            FileNotFoundError, NotADirectoryError: a file or the folder is missing.
            ValueError: a column is missing.
        """
        index = PictureIndex(images)
        kinds: dict[str, set[str]] = {}
        for line in csv_rows(self.classes, ("patientId", "class")) if self.classes else ():
            if isinstance(line, Damaged):
                yield line.rejected
            else:
                kinds.setdefault(line[1]["patientId"], set()).add(line[1]["class"])
        rows: dict[str, list[tuple[str, str, RawBox]]] = {}
        ids: dict[str, str] = {}
        damaged: Counter[str] = Counter()
        for line in csv_rows(annotations, ("patientId", "x", "y", "width", "height", "Target")):
            if isinstance(line, Damaged):
                yield line.rejected
                damaged.update({index.find(name) or name for name in line.fields})
                continue
            row, fields = line
            x, y, w, h = (number(fields[key]) for key in ("x", "y", "width", "height"))
            box = RawBox(row.removeprefix("line "), self.label, (x, y, x + w, y + h), row)
            file = index.find(fields["patientId"]) or fields["patientId"]
            ids.setdefault(file, fields["patientId"])
            rows.setdefault(file, []).append((row, fields["Target"], box))
        for file in list(rows):
            found, name = rows.pop(file), ids.pop(file)
            targets = {target for _, target, _ in found}
            if targets not in ({"0"}, {"1"}):
                value = f"{name}: {sorted(targets)}"
                yield Rejected(
                    file=annotations.name, row=found[0][0], reason="Target is not one of 0 and 1", value=value
                )
                continue
            if targets == {"0"} and self.classes is not None and kinds.get(name) != {"Normal"}:
                value = f"{name}: {', '.join(sorted(kinds.get(name, {'not listed'})))}"
                yield Rejected(
                    file=annotations.name,
                    row=found[0][0],
                    reason="image has no box but is not normal either",
                    value=value,
                )
                continue
            image = RawImage(name, file, annotations.name, found[0][0], broken=damaged[file])
            yield from assembled(image, [box for _, _, box in found] if targets == {"1"} else [], images, self)

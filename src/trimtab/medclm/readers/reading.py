"""What all readers share: their options, checks of one image and its boxes, files of text and of comma-separated values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict, field_validator

from trimtab.medclm.pixels import PictureError, picture_size
from trimtab.medclm.records import Box, ImageRecord, Lesion, Rejected, SplitName, inside

SPLIT_NAMES: Mapping[str, SplitName] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}

INCOMPLETE = "incomplete_image"
CLIPPED = "box_clipped"


class Reader(Protocol):
    """Reads the annotations of a data set, image by image, and says of every row it could not use why."""

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records and rejected rows, in the order of the source."""
        ...


class ReaderOptions(BaseModel):
    r"""Options of every reader.

    Attributes:
        modality: written to every record; a domain is class x modality.
        source: name of the data set; without it the name of the annotation file or folder.
        clip: cut boxes that reach beyond the image at its edge (flag "box_clipped") instead of rejecting them. Up to one
            pixel beyond the edge is rounding and always cut (ours).
        rename: class name in the source -> class name wanted.
        anatomy: classes that are organs, not lesions: left out here, for an organ source to read.
        patients: image file name (or its stem) -> patient.
        patient_pattern: regular expression whose first group, searched in the file name, is the patient: r"^(\d+)_".
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: str = "image"
    source: str = ""
    clip: bool = False
    rename: Mapping[str, str] = {}
    anatomy: tuple[str, ...] = ()
    patients: Mapping[str, str] = {}
    patient_pattern: str = ""

    @field_validator("patient_pattern")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        if value and re.compile(value).groups < 1:
            raise ValueError(f"patient_pattern {value!r} needs a group in parentheses, the patient")
        return value

    def patient_of(self, file: str, default: str) -> str:
        """Patient of an image: from `patients`, else by `patient_pattern`, else `default`."""
        path = Path(file)
        for key in (file, path.name, path.stem):
            if key in self.patients:
                return self.patients[key]
        found = re.search(self.patient_pattern, path.name) if self.patient_pattern else None
        return found.group(1) if found else default


@dataclass(frozen=True, slots=True)
class RawBox:
    """One box as a source states it: corners in the source's own pixels, x1 and y1 exclusive."""

    key: str
    label: str
    corners: tuple[float, float, float, float]
    row: str
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RawImage:
    """One image as a source states it.

    Attributes:
        declared: (width, height) the source claims; checked against the file.
        base: (width, height) the boxes are measured in; without it the size of the image.
        broken: boxes of this image that were rejected before they got here.
        source: name of the data set where the options give none; without it the name of the annotation file.
    """

    image_id: str
    file: str
    annotations: str
    row: str
    patient: str = ""
    declared: tuple[int, int] | None = None
    base: tuple[float, float] | None = None
    split: str = ""
    broken: int = 0
    source: str = ""


Problem = tuple[str, str]


def checked_box(
    corners: Sequence[float], width: float, height: float, clip: bool, tolerance: float = 1.0
) -> tuple[Box, bool] | Problem:
    """(box, whether it was cut at the edge), or (reason, value) of a box that cannot be used.

    Boxes may reach `tolerance` (in the unit of the corners) beyond the edge; they are cut there.
    """
    x0, y0, x1, y1 = corners
    if 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height:  # nearly all boxes
        return Box.of_checked(x0=x0 / width, y0=y0 / height, x1=x1 / width, y1=y1 / height), False
    value = f"x0 {x0:g}, y0 {y0:g}, x1 {x1:g}, y1 {y1:g} in {width:g} x {height:g}"
    if not (isfinite(x0) and isfinite(y0) and isfinite(x1) and isfinite(y1)):
        return "box has a corner that is not a number", value
    if x0 > x1 or y0 > y1:
        return "box has swapped corners (negative width or height)", value
    if x0 == x1 or y0 == y1:
        return "box has no area", value
    if x0 >= width or y0 >= height or x1 <= 0 or y1 <= 0:
        return "box lies outside the image", value
    beyond = max(-x0, -y0, x1 - width, y1 - height)
    if beyond > tolerance and not clip:
        return "box reaches beyond the image", value
    x0, y0, x1, y1 = max(x0, 0.0), max(y0, 0.0), min(x1, width), min(y1, height)
    return Box(x0=x0 / width, y0=y0 / height, x1=min(x1 / width, 1.0), y1=min(y1 / height, 1.0)), beyond > 0


def assembled(
    image: RawImage, boxes: Sequence[RawBox], images: Path, options: ReaderOptions, tolerance: float = 1.0
) -> Iterator[ImageRecord | Rejected]:
    """The record of one image after all checks, preceded by its rejected boxes.

    An image that loses all its boxes is rejected too: it is not a negative. One that loses some has the flag
    "incomplete_image" on the others, since counts and comparisons on it would be wrong.
    """
    size = checked_size(image, images)
    if isinstance(size, Rejected):
        yield size
        yield from (_rejected(image, box, "its image was rejected", image.file) for box in boxes)
        return
    width, height = image.base or size
    kept: list[tuple[RawBox, Box, bool]] = []
    seen: set[tuple[str, tuple[float, ...]]] = set()
    keys: set[str] = set()
    broken = image.broken
    for box in boxes:
        if box.label in options.anatomy:
            continue
        checked = checked_box(box.corners, width, height, options.clip, tolerance)
        if isinstance(checked[0], Box):
            if box.key in keys:
                checked = ("annotation id occurs twice", box.key)
            elif (box.label, box.corners) in seen:
                checked = ("same box and class as an earlier row of this image", f"{box.label} {box.corners}")
                broken -= 1  # nothing is missing from the image
        if isinstance(checked[0], str):
            broken += 1
            yield _rejected(image, box, checked[0], str(checked[1]))
            continue
        keys.add(box.key)
        seen.add((box.label, box.corners))
        kept.append((box, checked[0], bool(checked[1])))
    if broken and not kept:
        yield Rejected(
            file=image.annotations,
            row=image.row,
            reason="no usable box is left, so the image is no negative",
            value=image.file,
        )
        return
    lesions = tuple(
        Lesion.of_checked(  # all values are checked above; validation again would cost more than the reading
            lesion_id=f"{image.image_id}/{raw.key}",
            image_id=image.image_id,
            label=options.rename.get(raw.label, raw.label),
            box=box,
            host=None,
            area_fraction=None,
            source_row=f"{image.annotations}:{raw.row}",
            flags=tuple(sorted({*raw.flags, *([CLIPPED] if cut else []), *([INCOMPLETE] if broken else [])}))
            if raw.flags or cut or broken
            else (),
        )
        for raw, box, cut in kept
    )
    yield ImageRecord(
        image_id=image.image_id,
        file=inside(image.file),
        width=size[0],
        height=size[1],
        patient=options.patient_of(image.file, image.patient or image.image_id),
        modality=options.modality,
        split=SPLIT_NAMES.get(image.split.lower(), "train"),
        lesions=lesions,
        source=options.source or image.source or Path(image.annotations).stem,
    )


def _rejected(image: RawImage, box: RawBox, reason: str, value: str) -> Rejected:
    return Rejected(file=image.annotations, row=box.row, reason=reason, value=value)


def _stays_inside(path: Path, folder: Path) -> bool:
    """Whether `path` stays in `folder` with all links followed."""
    if path.is_symlink():
        return path.resolve().is_relative_to(folder.resolve())
    return _folder_stays_inside(path.parent, folder)


@lru_cache(maxsize=64)
def _folder_stays_inside(parent: Path, folder: Path) -> bool:
    return parent.resolve().is_relative_to(folder.resolve())


def checked_size(image: RawImage, images: Path) -> tuple[int, int] | Rejected:
    """(width, height) of the image's file, or why it cannot be used."""

    def reject(reason: str, value: str) -> Rejected:
        return Rejected(file=image.annotations, row=image.row, reason=reason, value=value)

    try:
        path = images / inside(image.file)
        size = picture_size(path)
    except FileNotFoundError:
        return reject("image is missing", str(images / image.file))
    except PictureError as error:
        return reject("image is unreadable", str(error))
    except ValueError as error:
        return reject("file name leaves the image folder", str(error))
    if not _stays_inside(path, images):
        return reject("file name leaves the image folder", f"{image.file!r} is a link to {path.resolve()}")
    if image.declared is not None and image.declared != size:
        stated = "{} x {}".format(*image.declared)
        return reject("image has another size than stated", f"{image.file}: stated {stated}, is {size[0]} x {size[1]}")
    if image.split and image.split.lower() not in SPLIT_NAMES:
        return reject("split has an unknown name", f"{image.split!r}; allowed: {', '.join(SPLIT_NAMES)}")
    return size

"""What all readers share: their options, checks of one image and its boxes, files of text and of comma-separated values."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple, Protocol

from pydantic import BaseModel, ConfigDict, field_validator

from trimtab.medclm.files import PictureIndex
from trimtab.medclm.pixels import PictureError, picture_header
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
        orientation: which way up the boxes of a picture with an EXIF orientation were drawn: "stored" pixels, or "upright" as
            viewers turn them; "size" (ours) goes by the size that the source states, and rejects an image with boxes where
            that leaves it open (a square, a half turn, no size stated). The picture is delivered the way that was meant.
        trust_sizes: take the size that the source states without opening the image, and its boxes as "stored" where the
            orientation is "size". A build that opens the image later rejects it where it is missing or of another size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    modality: str = "image"
    source: str = ""
    clip: bool = False
    rename: Mapping[str, str] = {}
    anatomy: tuple[str, ...] = ()
    patients: Mapping[str, str] = {}
    patient_pattern: str = ""
    orientation: Literal["size", "stored", "upright"] = "size"
    trust_sizes: bool = False

    @field_validator("patient_pattern")
    @classmethod
    def _has_a_group(cls, value: str) -> str:
        if value and re.compile(value).groups < 1:
            raise ValueError(f"patient_pattern {value!r} needs a group in parentheses, the patient")
        return value

    def patient_of(self, file: str, default: str) -> str:
        """Patient of an image: from `patients`, else by `patient_pattern`, else `default`."""
        if not self.patients and not self.patient_pattern:
            return default
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
        doubt: why the boxes may be incomplete although none was rejected; without boxes the image is rejected with it.
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
    doubt: str = ""


class Frame(NamedTuple):
    """The size of an image as its boxes see it, and whether that is its EXIF orientation applied."""

    width: int
    height: int
    upright: bool = False


Problem = tuple[str, str]


def checked_box(
    corners: Sequence[float], width: float, height: float, *, clip: bool, tolerance: float = 1.0
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
    image: RawImage,
    boxes: Sequence[RawBox],
    images: Path,
    options: ReaderOptions,
    tolerance: float = 1.0,
    frame: Frame | None = None,
) -> Iterator[ImageRecord | Rejected]:
    """The record of one image after all checks, preceded by its rejected boxes.

    An image that loses all its boxes is rejected too: it is not a negative. One that loses some has the flag
    "incomplete_image" on the others, since counts and comparisons on it would be wrong. `frame` is what `checked_size` gave,
    where it was asked before.
    """
    found = frame or checked_size(image, images, options, boxed=bool(boxes))
    if isinstance(found, Rejected):
        yield found
        yield from (_rejected(image, box, "its image was rejected", image.file) for box in boxes)
        return
    width, height = image.base or (found.width, found.height)
    kept: list[tuple[RawBox, Box, bool]] = []
    seen: set[tuple[str, tuple[float, ...]]] = set()
    broken, anatomy, clip = image.broken, options.anatomy, options.clip
    for box in boxes:
        if anatomy and box.label in anatomy:
            continue
        checked = checked_box(box.corners, width, height, clip=clip, tolerance=tolerance)
        same = (box.label, box.corners)
        if same in seen and isinstance(checked[0], Box):
            checked = ("same box and class as an earlier row of this image", f"{box.label} {box.corners}")
            broken -= 1  # nothing is missing from the image
        if isinstance(checked[0], str):
            broken += 1
            yield _rejected(image, box, checked[0], str(checked[1]))
            continue
        seen.add(same)
        kept.append((box, checked[0], bool(checked[1])))
    if (broken or image.doubt) and not kept:
        reason = "no usable box is left, so the image is no negative" if broken else image.doubt
        yield Rejected(file=image.annotations, row=image.row, reason=reason, value=image.file)
        return
    incomplete = [INCOMPLETE] if broken or image.doubt else []
    lesions = tuple(
        [
            Lesion.of_checked(  # all values are checked above; validation again would cost more than the reading
                lesion_id=f"{image.image_id}/{raw.key}",
                image_id=image.image_id,
                label=options.rename.get(raw.label, raw.label),
                box=box,
                host=None,
                area_fraction=None,
                source_row=f"{image.annotations}:{raw.row}",
                flags=tuple(sorted({*raw.flags, *([CLIPPED] if cut else []), *incomplete}))
                if raw.flags or cut or incomplete
                else (),
            )
            for raw, box, cut in kept
        ]
    )
    yield ImageRecord(
        image_id=image.image_id,
        file=inside(image.file),
        width=found.width,
        height=found.height,
        upright=found.upright,
        patient=options.patient_of(image.file, image.patient or image.image_id),
        modality=options.modality,
        split=SPLIT_NAMES.get(image.split.lower(), "train"),
        lesions=lesions,
        source=options.source or image.source or Path(image.annotations).stem,
    )


def _rejected(image: RawImage, box: RawBox, reason: str, value: str) -> Rejected:
    return Rejected(file=image.annotations, row=box.row, reason=reason, value=value)


def stays_inside(path: Path, folder: Path) -> bool:
    """Whether `path` stays in `folder` with all links followed."""
    if path.is_symlink():
        return path.resolve().is_relative_to(folder.resolve())
    return _folder_stays_inside(path.parent, folder)


@lru_cache(maxsize=64)
def _folder_stays_inside(parent: Path, folder: Path) -> bool:
    return parent.resolve().is_relative_to(folder.resolve())


def checked_size(image: RawImage, images: Path, options: ReaderOptions, *, boxed: bool = True) -> Frame | Rejected:
    """The size of the image's file as its boxes see it, or why it cannot be used; `boxed` if there are any boxes."""

    def reject(reason: str, value: str) -> Rejected:
        return Rejected(file=image.annotations, row=image.row, reason=reason, value=value)

    if image.split and image.split.lower() not in SPLIT_NAMES:
        return reject("split has an unknown name", f"{image.split!r}; allowed: {', '.join(SPLIT_NAMES)}")
    try:
        name = inside(image.file)
        if options.trust_sizes and image.declared is not None:
            return Frame(*image.declared, options.orientation == "upright")
        path = images / name
        size, orientation = picture_header(path)
    except FileNotFoundError:
        return reject("image is missing", f"{images / image.file}{_where_else(image.file, images)}")
    except PictureError as error:
        return reject("image is unreadable", str(error))
    except ValueError as error:
        return reject("file name leaves the image folder", f"{error}{_where_else(image.file, images)}")
    if not stays_inside(path, images):
        return reject("file name leaves the image folder", f"{image.file!r} is a link to {path.resolve()}")
    turned = size[::-1] if orientation >= 5 else size
    if image.declared is not None and image.declared not in (size, turned):
        stated = "{} x {}".format(*image.declared)
        return reject("image has another size than stated", f"{image.file}: stated {stated}, is {size[0]} x {size[1]}")
    if orientation == 1:
        return Frame(*size)
    if options.orientation != "size":
        upright = options.orientation == "upright"
    elif image.declared is not None and size != turned:
        upright = image.declared == turned
    elif boxed:
        value = f"{image.file}: EXIF orientation {orientation}; say orientation=stored or orientation=upright"
        return reject("EXIF orientation leaves open which way up the boxes were drawn", value)
    else:
        upright = True
    frame = Frame(*(turned if upright else size), upright)
    if image.declared not in (None, (frame.width, frame.height)):
        value = f"{image.file}: stated {image.declared}, is {frame.width} x {frame.height} {options.orientation}"
        return reject("image has another size than stated", value)
    return frame


def _where_else(file: str, images: Path) -> str:
    """Where pictures of this name do lie, for the report."""
    others = _index(images).named(PurePosixPath(file.replace("\\", "/")).name) if images.is_dir() else []
    if not others:
        return ""
    found = f"; pictures of that name: {', '.join(others[:3])}"
    return f"{found}; images must be the folder that file names are relative to" if len(others) == 1 else found


@lru_cache(maxsize=1)
def _index(images: Path) -> PictureIndex:
    return PictureIndex(images)

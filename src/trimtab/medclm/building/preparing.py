"""What is done once per image: check and copy it, name its classes, get organ masks, decide the hosts, store the masks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trimtab.medclm import organs
from trimtab.medclm.building.folder import DataSetFolder
from trimtab.medclm.building.identity import content_of
from trimtab.medclm.building.journal import journal_items
from trimtab.medclm.hosts import decided_hosts
from trimtab.medclm.organs.rle import organs_text
from trimtab.medclm.organs.source import OrganError, OrganSource
from trimtab.medclm.pixels import ORIENTATION, PictureError, read_picture
from trimtab.medclm.readers.reading import stays_inside
from trimtab.medclm.records import ImageRecord, Record, Rejected
from trimtab.medclm.rules import HostRules

SHIPPED = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
"""Pictures of these kinds are copied byte for byte if they hold 8 bits a channel and no EXIF orientation; others become PNG."""


class Prepared(Record):
    """What became of one item of the reader: a record ready for questions, or rows of the report.

    Attributes:
        record: with hosts, its classes named as the rules name them.
        rejected: rows of the report.
        classes: class name of the source -> that of the record.
        content: hash of the pixels, see `identity.content_of`.
    """

    record: ImageRecord | None = None
    rejected: tuple[Rejected, ...] = ()
    classes: Mapping[str, str] = {}
    content: str = ""


@dataclass(frozen=True)
class Preparation:
    """Prepares one image; picklable, so that it runs in other processes and on other machines alike.

    Args:
        images: folder the images lie in.
        out: folder of the data set.
        rules: how hosts are decided.
        organ_sources: (name, options) of the organ sources; none leaves hosts unknown.
        without_organs: "keep" an image whose masks cannot be had (its hosts are unknown, the fault is reported) or "reject" it.
    """

    images: Path
    out: Path
    rules: HostRules
    organ_sources: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...] = ()
    without_organs: str = "keep"

    def __call__(self, item: ImageRecord | Rejected) -> Prepared:
        """The record with hosts; the image and its masks are written."""
        if isinstance(item, Rejected):
            return Prepared(rejected=(item,))
        source = item.file
        if not stays_inside(self.images / source, self.images):
            value = f"{source!r} is a link to {(self.images / source).resolve()}"
            return Prepared(
                rejected=(Rejected(file=source, row="", reason="file name leaves the image folder", value=value),)
            )
        try:
            pixels = read_picture(self.images / source, upright=item.upright)
            shape = pixels.shape[:2]
            if shape != (item.height, item.width):
                value = f"stated {item.width} x {item.height}, decoded {shape[1]} x {shape[0]}"
                return Prepared(rejected=(Rejected(file=source, row="", reason="image has another size", value=value),))
            shipped = self._ship(source, pixels)
        except (PictureError, FileNotFoundError) as error:
            return Prepared(rejected=(Rejected(file=source, row="", reason="image is unreadable", value=str(error)),))
        rejected: tuple[Rejected, ...] = ()
        masks: Mapping[str, NDArray[np.bool_]] = {}
        if self.organ_sources:
            try:
                masks = _source(self.organ_sources).masks(item, pixels)
            except OrganError as error:
                rejected = (error.rejected,)
                if self.without_organs == "reject":
                    return Prepared(rejected=rejected)
        classes = {lesion.label: self.rules.class_of(lesion.label) for lesion in item.lesions}
        lesions = tuple(lesion.model_copy(update={"label": classes[lesion.label]}) for lesion in item.lesions)
        record = decided_hosts(item.model_copy(update={"lesions": lesions}), masks, self.rules)
        organ_file = None
        if masks:
            organ_file = PurePosixPath(shipped).with_suffix(PurePosixPath(shipped).suffix + ".json").as_posix()
            _replace(
                self.out / "organs" / organ_file, lambda path: path.write_text(organs_text(masks), encoding="utf-8")
            )
        record = record.model_copy(update={"file": shipped, "organ_file": organ_file, "upright": False})
        return Prepared(record=record, rejected=rejected, classes=classes, content=content_of(pixels))

    def _ship(self, source: str, pixels: NDArray[np.uint8]) -> str:
        """Write the image under the data set's folder; returns its path there."""
        original = self.images / source
        keep = PurePosixPath(source).suffix.lower() in SHIPPED and _is_plain(original)
        shipped = source if keep else f"{source}.png"
        target = self.out / "images" / shipped
        if keep:
            _replace(target, lambda path: shutil.copyfile(original, path))
        else:
            _replace(target, lambda path: Image.fromarray(pixels).save(path, format="PNG"))
        return shipped


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    """Whole or not there, as `files.replace_atomically`, but not flushed to the disk: an interrupted build makes it again."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.part")
    write(temporary)
    temporary.replace(target)


@dataclass(frozen=True)
class OnText:
    """A preparation on JSON text, for launchers that send items to other machines."""

    preparation: Preparation

    def __call__(self, item: str) -> str:
        """`item` is a `Prepared` that holds what the reader gave."""
        given = Prepared.model_validate_json(item)
        return self.preparation(given.record or given.rejected[0]).model_dump_json()


def as_text(item: ImageRecord | Rejected) -> str:
    """An item of a reader as `OnText` takes it."""
    wrapped = Prepared(rejected=(item,)) if isinstance(item, Rejected) else Prepared(record=item)
    return wrapped.model_dump_json()


def _is_plain(path: Path) -> bool:
    """Whether any viewer shows the very pixels: 8 bits a channel and no EXIF orientation, also none behind the pixels."""
    with Image.open(path) as picture:
        if picture.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr"):
            return False
        if picture.format == "PNG":
            raw = path.read_bytes()
            if not any(sign in raw for sign in (b"eXIf", b"Raw profile type", b"Orientation")):
                return True
        try:
            return bool(picture.getexif().get(ORIENTATION, 1) == 1)
        except Exception:  # damaged EXIF: written anew without it
            return False


@lru_cache(maxsize=1)
def _source(sources: tuple[tuple[str, tuple[tuple[str, Any], ...]], ...]) -> OrganSource:
    """The organ source of this process, made once."""
    made = [organs.create(name, **dict(options)) for name, options in sources]
    return made[0] if len(made) == 1 else organs.Combined(made)


def prepared_records(folder: DataSetFolder) -> Iterator[ImageRecord]:
    """The records of the step "images"."""
    for item in journal_items(folder.work / "images.jsonl"):
        if item["record"] is not None:
            yield Prepared.model_validate(item).record  # type: ignore[misc]

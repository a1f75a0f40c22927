"""Pascal VOC: one xml file per image, corners in pixels."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from trimtab.medclm.files import (
    PictureIndex,
    number,
    require_folder,
    whole,
)
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected, inside

_FILENAME = re.compile(rb"<filename>([^<]*)</filename>")


class VocReader(ReaderOptions):
    """A folder of Pascal VOC xml files. Files without `object` are negatives; entities and DTDs are refused.

    The image is `filename`, also without its suffix or below the image folder's own name; where there is no such picture, the
    one called as the xml file, as VOC's own tools have it. A size of 0 or none counts as not stated. An `object` or `bndbox`
    elsewhere than VOC puts it makes its image incomplete. Two xml files for one image are both rejected.

    Attributes:
        first_pixel: number of the first pixel. 1 is VOC's own rule: xmin 1 is the left-most pixel, xmax the last one inside,
            so a box is [xmin - 1, xmax). 0 takes corners as edges: [xmin, xmax).
    """

    first_pixel: int = 1

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records file by file, by name.

        Raises:
            NotADirectoryError: there is no such folder.
            FileNotFoundError: it has no xml files.
            ValueError: first_pixel is neither 0 nor 1.
        """
        if self.first_pixel not in (0, 1):
            raise ValueError(f"first_pixel must be 0 or 1, not {self.first_pixel}")
        files = sorted(require_folder(annotations, "a folder of Pascal VOC xml files").glob("*.xml"))
        if not files:
            raise FileNotFoundError(f"{annotations} holds no .xml files")
        index = PictureIndex(images)
        pictures = {file: _picture(_filename(file), file, index, images) for file in files}
        times = Counter(pictures.values())
        for file, found in pictures.items():
            root = _parsed(file)
            name = "" if isinstance(root, Rejected) else _text(root.find("filename"))
            if isinstance(root, Rejected):
                yield root
            elif not name or _picture(name, file, index, images) != found:
                yield Rejected(file=file.name, row="filename", reason="xml without filename")
            elif times[found] > 1:
                also = [other.name for other, one in pictures.items() if one == found and other != file]
                value = f"{found}: also {', '.join(also[:3])}"
                yield Rejected(file=file.name, row="filename", reason="image occurs twice", value=value)
            else:
                yield from self._image(root, found, file, annotations.name, images)

    def _image(self, root: Any, name: str, file: Path, source: str, images: Path) -> Iterator[ImageRecord | Rejected]:
        stated = [_text(root.find(f"size/{key}")) for key in ("width", "height")]
        sides = [whole(text) for text in stated if text and number(text) != 0]
        if any(side is None or side < 1 for side in sides):
            reason = "xml whose width and height are no whole numbers above 0"
            yield Rejected(file=file.name, row="size", reason=reason, value=" x ".join(stated)[:80])
            return
        boxes: list[RawBox] = []
        broken = 0
        for index, found in enumerate(root.iterfind("object")):
            row = f"object {index + 1}"
            fields = {child.tag: child for child in reversed(found)}  # of a tag that occurs twice the first
            label = _text(fields.get("name"))
            if not label:
                broken += 1
                yield Rejected(file=file.name, row=row, reason="object without name")
                continue
            corners = {child.tag: child.text for child in reversed(fields.get("bndbox", ()))}
            x0, y0, x1, y1 = (number(corners.get(key)) for key in ("xmin", "ymin", "xmax", "ymax"))
            flags = tuple(key for key in ("difficult", "truncated") if _text(fields.get(key)) == "1")
            shift = float(self.first_pixel)
            boxes.append(RawBox(str(index + 1), label, (x0 - shift, y0 - shift, x1, y1), row, flags))
        strays = _strays(root)
        if strays:
            broken += strays
            reason = "objects elsewhere than Pascal VOC puts them: annotation/object/bndbox"
            yield Rejected(file=file.name, row="annotation", reason=reason, value=str(strays))
        image = RawImage(
            image_id=PurePosixPath(name).stem if "/" not in name else PurePosixPath(name).with_suffix("").as_posix(),
            file=name,
            annotations=file.name,
            row="image",
            declared=(sides[0], sides[1]) if len(sides) == 2 and sides[0] and sides[1] else None,
            broken=broken,
            source=source,
        )
        yield from assembled(image, boxes, images, self)


def _filename(file: Path) -> str:
    """The text of `filename`; of plain xml, where no comment can hide another, without parsing all of it."""
    try:
        raw = file.read_bytes()
    except OSError:
        return ""
    found = _FILENAME.findall(raw)
    if len(found) == 1 and found[0].isascii() and b"&" not in found[0] and b"<!" not in raw:
        name: str = found[0].decode("ascii").strip()
        return name
    root = _parsed(file)
    return "" if isinstance(root, Rejected) else _text(root.find("filename"))


def _picture(name: str, file: Path, index: PictureIndex, images: Path) -> str:
    """The picture that an xml file with this `filename` speaks of."""
    try:
        path = inside(name) if name else file.stem
    except ValueError:
        return name
    if path in index or (images / path).is_file() or len(index.named(path)) > 1:
        return path
    found = index.find(path) or index.find(path.removeprefix(f"{images.name}/")) or index.find(file.stem)
    return found or path


def _strays(root: Any) -> int:
    """Objects and boxes that stand elsewhere than VOC puts them (parts of an object have boxes of their own)."""
    proper = {id(found) for found in root.iterfind("object")}
    known = {id(box) for found in root.iterfind("object") for box in found.iter("bndbox")}
    return sum(
        str(element.tag).lower() in ("object", "bndbox") and id(element) not in proper and id(element) not in known
        for element in root.iter()
    )


def _text(element: Any) -> str:
    return "" if element is None else (element.text or "").strip()


def _parsed(file: Path) -> Any:
    from xml.etree.ElementTree import ParseError

    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import fromstring

    try:
        return fromstring(file.read_bytes(), forbid_dtd=True)
    except DefusedXmlException as error:
        return Rejected(
            file=file.name, row="", reason="xml with a DTD or entities is refused", value=type(error).__name__
        )
    except (ParseError, ValueError, LookupError, OSError, RecursionError) as error:
        return Rejected(file=file.name, row="", reason="xml is unreadable", value=str(error))

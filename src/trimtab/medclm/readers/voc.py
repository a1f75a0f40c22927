"""Pascal VOC: one xml file per image, corners in pixels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trimtab.medclm.readers.files import number, require_folder
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected


class VocReader(ReaderOptions):
    """A folder of Pascal VOC xml files. Files without `object` are negatives; entities and DTDs are refused.

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
        seen: dict[str, str] = {}
        for file in files:
            root = _parsed(file)
            if isinstance(root, Rejected):
                yield root
                continue
            name = (root.findtext("filename") or "").strip()
            if not name:
                yield Rejected(file=file.name, row="filename", reason="xml without filename")
            elif name in seen:
                yield Rejected(
                    file=file.name, row="filename", reason="image occurs twice", value=f"{name}: also {seen[name]}"
                )
            else:
                seen[name] = file.name
                yield from self._image(root, name, file, annotations.name, images)

    def _image(self, root: Any, name: str, file: Path, source: str, images: Path) -> Iterator[ImageRecord | Rejected]:
        declared = tuple(number(root.findtext(f"size/{key}")) for key in ("width", "height"))
        sized = all(value > 0 and value == int(value) for value in declared if value == value)
        if any(value != value for value in declared) or not sized:
            yield Rejected(
                file=file.name, row="size", reason="xml without a width and height above 0", value=str(declared)
            )
            return
        boxes, broken = [], 0
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
        image = RawImage(
            image_id=Path(name).stem,
            file=name,
            annotations=file.name,
            row="image",
            declared=(int(declared[0]), int(declared[1])),
            broken=broken,
            source=source,
        )
        yield from assembled(image, boxes, images, self)


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
    except (ParseError, ValueError, LookupError) as error:
        return Rejected(file=file.name, row="", reason="xml is unreadable", value=str(error))

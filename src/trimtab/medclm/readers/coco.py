"""COCO detection json: boxes as x, y, width, height in pixels; masks as polygons or run lengths."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from trimtab.medclm.readers.files import number, require_file, utf8
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled
from trimtab.medclm.records import ImageRecord, Rejected

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def load_coco(path: Path) -> dict[str, Any]:
    """The document of a COCO json file, with its lists `images`, `annotations` and `categories`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, not json, or one of the lists is missing or `images` is empty.
    """
    raw = require_file(path, "a COCO json file").read_bytes()
    try:
        document = from_json(raw.removeprefix(BYTE_ORDER_MARK))
    except ValueError as error:
        utf8(path)
        raise ValueError(f"{path} is not json: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ValueError(f"{path} has no list {key!r}; COCO needs images, annotations and categories")
    if not document["images"]:
        raise ValueError(f"{path} lists no images")
    found: dict[str, Any] = document
    return found


def category_names(document: Mapping[str, Any], file: str) -> tuple[dict[Any, str], list[Rejected]]:
    """Category id -> name, and the categories that have no usable name or an id twice."""
    found: dict[Any, str] = {}
    rejected = []
    for index, category in enumerate(document["categories"]):
        row = f"categories[{index}]"
        identity, name = (category.get("id"), category.get("name")) if isinstance(category, dict) else (None, None)
        if identity is None or not isinstance(name, str) or not name.strip():
            rejected.append(Rejected(file=file, row=row, reason="category without id or name", value=str(category)))
        elif identity in found:
            rejected.append(Rejected(file=file, row=row, reason="category id occurs twice", value=str(identity)))
        else:
            found[identity] = name
    return found, rejected


class CocoReader(ReaderOptions):
    """COCO json. Images without annotations are negatives. Boxes of crowds are kept with the flag "crowd".

    An annotation without `bbox` gets the box of its mask. `split` (train, val or valid, test) and `patient`,
    `patient_id` or `patientid` of an image entry are used where present.
    """

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, in the order of the list `images`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file as a whole cannot be used; single rows are `Rejected`.
        """
        document = load_coco(annotations)
        file = annotations.name
        names, unnamed = category_names(document, file)
        yield from unnamed
        entries: dict[Any, dict[str, Any]] = {}
        for index, entry in enumerate(document.pop("images")):
            problem = _image_problem(entry, entries)
            if problem:
                yield Rejected(file=file, row=f"images[{index}]", reason=problem, value=str(entry)[:200])
            else:
                entries[entry["id"]] = entry
        of_image: dict[Any, list[tuple[int, dict[str, Any]]]] = {}
        seen: set[Any] = set()
        broken: dict[Any, int] = {}
        for index, annotation in enumerate(document.pop("annotations")):
            problem = _annotation_problem(annotation, entries, names, seen)
            if problem:
                yield Rejected(file=file, row=_row(annotation, index), reason=problem, value=_shown(annotation))
                owner = annotation.get("image_id") if isinstance(annotation, dict) else None
                if isinstance(owner, int | str) and problem != "annotation id occurs twice":
                    broken[owner] = broken.get(owner, 0) + 1
            else:
                seen.add(annotation["id"])
                of_image.setdefault(annotation["image_id"], []).append((index, annotation))
        for identity in list(entries):
            entry = entries.pop(identity)
            yield from self._image(
                entry, of_image.pop(identity, []), names, annotations.name, images, broken.get(identity, 0)
            )

    def _image(
        self,
        entry: dict[str, Any],
        annotations: Sequence[tuple[int, dict[str, Any]]],
        names: Mapping[Any, str],
        file: str,
        images: Path,
        broken: int,
    ) -> Iterator[ImageRecord | Rejected]:
        size = (entry["width"], entry["height"])
        boxes = []
        for index, annotation in annotations:
            row = _row(annotation, index)
            try:
                corners = _corners(annotation, *size)
            except ValueError as error:
                broken += 1
                yield Rejected(file=file, row=row, reason="mask does not fit its image", value=str(error))
                continue
            flags = ("crowd",) if annotation.get("iscrowd") else ()
            boxes.append(RawBox(str(annotation["id"]), names[annotation["category_id"]], corners, row, flags))
        patient = next((entry[key] for key in ("patient", "patient_id", "patientid") if entry.get(key) is not None), "")
        image = RawImage(
            image_id=str(entry["id"]),
            file=entry["file_name"],
            annotations=file,
            row=f"image {entry['id']}",
            patient=str(patient),
            declared=size,
            split=str(entry.get("split", "")),
            broken=broken,
        )
        yield from assembled(image, boxes, images, self)


def _row(annotation: object, index: int) -> str:
    identity = annotation.get("id") if isinstance(annotation, dict) else None
    return f"annotations[{index}]" if identity is None else f"annotation {identity}"


def _shown(annotation: object) -> str:
    if isinstance(annotation, dict):
        return str({key: value for key, value in annotation.items() if key != "segmentation"})[:200]
    return str(annotation)[:200]


def _image_problem(entry: object, entries: Mapping[Any, object]) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("id"), int | str):
        return "image entry without id"
    if entry["id"] in entries:
        return "image id occurs twice"
    if not isinstance(entry.get("file_name"), str) or not entry["file_name"]:
        return "image entry without file_name"
    if not all(isinstance(entry.get(key), int) and entry[key] > 0 for key in ("width", "height")):
        return "image entry without a width and height above 0"
    return ""


def _annotation_problem(
    annotation: object, entries: Mapping[Any, object], names: Mapping[Any, str], seen: set[Any]
) -> str:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("id"), int | str):
        return "annotation without id"
    if annotation["id"] in seen:
        return "annotation id occurs twice"
    if not isinstance(annotation.get("image_id"), int | str) or annotation["image_id"] not in entries:
        return "annotation of an image that is not listed"
    if not isinstance(annotation.get("category_id"), int | str) or annotation["category_id"] not in names:
        return "annotation of a category without name"
    box = annotation.get("bbox")
    if box is None and not annotation.get("segmentation"):
        return "annotation without bbox and mask"
    if box is not None and not (isinstance(box, list) and len(box) == 4):
        return "bbox is not four numbers"
    return ""


def _corners(annotation: Mapping[str, Any], width: int, height: int) -> tuple[float, float, float, float]:
    mask, box = annotation.get("segmentation"), annotation.get("bbox")
    if isinstance(mask, dict) and tuple(mask.get("size", ())) != (height, width):
        raise ValueError(f"run lengths of {mask.get('size')}, image {[height, width]} (height, width)")
    if box is None:
        from pycocotools import mask as masks

        from trimtab.medclm.organs.rle import run_lengths

        x, y, w, h = (float(value) for value in masks.toBbox(run_lengths(mask, height, width)))
    else:
        x, y, w, h = (number(value) for value in box)
    return x, y, x + w, y + h

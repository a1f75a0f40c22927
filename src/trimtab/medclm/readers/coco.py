"""COCO detection json: boxes as x, y, width, height in pixels; masks as polygons or run lengths."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trimtab.medclm.coco import category_names, load_coco, polygons, run_lengths, shown
from trimtab.medclm.files import identifier, number
from trimtab.medclm.readers.coco_columns import Columns
from trimtab.medclm.readers.coco_images import Entry, Listed
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled, checked_size
from trimtab.medclm.records import ImageRecord, Rejected

_Row = tuple[int, dict[str, Any], str]
"""An annotation: where it stands, itself, its id as text ("" for none)."""
_PLAIN = (int, float)
TOGETHER = 128
"""Images whose lesions are made together: more take memory and save no time (ours)."""


class CocoReader(ReaderOptions):
    """COCO json. Images without annotations are negatives. Boxes of crowds are kept with the flag "crowd".

    An annotation without `bbox` gets the box of its mask. `split` (train, val or valid, test) and `patient`,
    `patient_id` or `patientid` of an image entry are used where present. Ids may be numbers, whole floats or text; 1, 1.0
    and "1" are one id. Ids of annotations need not be there nor differ: they only name lesions. Width and height may be
    missing or 0. One file under several image ids is one image. A crowd whose mask is of one piece is a single lesion, as
    CVAT writes every mask with iscrowd 1.
    """

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, in the order of the list `images`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the file as a whole cannot be used, or its annotations name none of its images; single rows are
                `Rejected`.
        """
        document = load_coco(annotations)
        file = annotations.name
        names, unnamed = category_names(document, file)
        yield from unnamed
        listed = Listed(document.pop("images"), file, images)
        yield from listed.rejected
        rows = document.pop("annotations")
        columns = None if self.anatomy else Columns.of(rows, listed, names)
        if columns is not None:
            yield from self._by_columns(columns, rows, listed.entries, names, file, images)
            return
        of_image: dict[str, list[_Row]] = {}
        times: Counter[str] = Counter()
        broken: Counter[str] = Counter()
        nameless = strangers = 0
        for index, annotation in enumerate(rows):
            problem = _annotation_problem(annotation, listed, names)
            raw = annotation.get("image_id") if isinstance(annotation, dict) else None
            owner = str(raw) if type(raw) is int else identifier(raw)
            if problem:
                yield Rejected(file=file, row=_row(annotation, index), reason=problem, value=shown(annotation))
                nameless += owner is None
                strangers += owner is not None and owner not in listed
                broken[owner or ""] += 1
            else:
                key = identifier(annotation.get("id")) or ""
                times[key] += 1
                of_image.setdefault(owner or "", []).append((index, annotation, key))
        if strangers and strangers + nameless == len(rows):
            stranger = next(
                row["image_id"] for row in rows if isinstance(row, dict) and identifier(row.get("image_id"))
            )
            raise ValueError(
                f"{annotations}: not one of its {len(rows)} annotations names a listed image: image_id is {stranger!r}, "
                f"ids are {', '.join(map(repr, listed.ids[:3]))}; as it is, every image would be called normal"
            )
        doubt = "annotations of the set name no image, so none without boxes is surely a negative" if nameless else ""
        for entry in listed.entries:
            parts = [of_image.pop(identity, []) for identity in entry.ids]
            lost = sum(broken[identity] for identity in entry.ids)
            yield from self._image(entry, parts, names, times, file, images, lost, doubt)

    def _by_columns(
        self,
        columns: Columns,
        rows: Sequence[dict[str, Any]],
        entries: Sequence[Entry],
        names: Mapping[str, str],
        file: str,
        images: Path,
    ) -> Iterator[ImageRecord | Rejected]:
        """The same for a file whose annotations are as nearly all are; what is not goes through `_image`."""
        for start in range(0, len(entries), TOGETHER):
            some = entries[start : start + TOGETHER]
            for entry, record in zip(some, columns.records(some, file, images, self), strict=True):
                if record is not None:
                    yield record
                    continue
                places = [columns.of_image.get(identity, []) for identity in entry.ids]
                parts = [[(place, rows[place], str(columns.ids[place])) for place in part] for part in places]
                times = Counter(key for part in parts for _, _, key in part)
                yield from self._image(entry, parts, names, times, file, images, 0, "")

    def _image(
        self,
        entry: Entry,
        parts: Sequence[Sequence[_Row]],
        names: Mapping[str, str],
        times: Mapping[str, int],
        file: str,
        images: Path,
        broken: int,
        doubt: str,
    ) -> Iterator[ImageRecord | Rejected]:
        """What an image gives; `parts` are the annotations of each of its ids, `times` how often their ids occur."""
        if len(parts) > 1 and len({_boxes(part) for part in parts}) > 1:
            doubt = "image is listed twice with different boxes"
        annotations = [one for part in parts for one in part]
        image = RawImage(
            image_id=entry.ids[0],
            file=entry.file,
            annotations=file,
            row=f"image {entry.ids[0]}",
            patient=entry.patient,
            declared=entry.size,
            split=entry.split,
            broken=broken,
            doubt=doubt,
        )
        frame = checked_size(image, images, self, boxed=bool(annotations))
        if isinstance(frame, Rejected):
            yield frame
            for index, annotation, _ in annotations:
                yield Rejected(
                    file=file, row=_row(annotation, index), reason="its image was rejected", value=entry.file
                )
            return
        boxes = []
        taken: set[str] = set()
        found = broken
        for index, annotation, identity in annotations:
            row = f"annotation {identity[:80]}" if identity and times[identity] == 1 else f"annotations[{index}]"
            crowd = False
            try:
                corners = _corners(annotation, frame.width, frame.height)
                if annotation.get("iscrowd"):
                    crowd = _is_crowd(annotation, frame.width, frame.height)
            except ValueError as error:
                found += 1
                yield Rejected(file=file, row=row, reason="mask does not fit its image", value=str(error))
                continue
            key = identity if identity and identity not in taken else f"{identity}@{index}"
            taken.add(key)
            label = names[identifier(annotation["category_id"]) or ""]
            boxes.append(RawBox(key, label, corners, row, ("crowd",) if crowd else ()))
        whole = image if found == broken else replace(image, broken=found)
        yield from assembled(whole, boxes, images, self, frame=frame)


def _row(annotation: object, index: int) -> str:
    identity = identifier(annotation.get("id")) if isinstance(annotation, dict) else None
    return f"annotations[{index}]" if identity is None else f"annotation {identity[:80]}"


def _annotation_problem(annotation: object, listed: Listed, names: Mapping[str, str]) -> str:
    if not isinstance(annotation, dict):
        return "annotation is no object"
    raw = annotation.get("image_id")
    owner = str(raw) if type(raw) is int else identifier(raw)
    if owner is None:
        return "annotation without image_id"
    if owner in listed.refused:
        return "its image was rejected"
    if owner not in listed:
        return "annotation of an image that is not listed"
    raw = annotation.get("category_id")
    if ((str(raw) if type(raw) is int else identifier(raw)) or "") not in names:
        return "annotation of a category without name"
    box = annotation.get("bbox")
    if type(box) is list and len(box) == 4:
        return ""
    if box in (None, []):
        return "" if annotation.get("segmentation") else "annotation without bbox and mask"
    return "bbox is not four numbers"


def _boxes(annotations: Sequence[_Row]) -> frozenset[str]:
    """What the annotations say, for comparison with those of another entry of the same file."""
    return frozenset(
        f"{identifier(one['category_id'])} {one.get('bbox') or one.get('segmentation')}" for _, one, _ in annotations
    )


def _corners(annotation: Mapping[str, Any], width: int, height: int) -> tuple[float, float, float, float]:
    mask, box = annotation.get("segmentation"), annotation.get("bbox")
    if box and not isinstance(mask, dict):
        x, y, w, h = box
        if type(x) in _PLAIN and type(y) in _PLAIN and type(w) in _PLAIN and type(h) in _PLAIN:  # nearly all boxes
            with contextlib.suppress(OverflowError):  # a whole number that is no float
                return float(x), float(y), float(x) + float(w), float(y) + float(h)
    if isinstance(mask, dict):
        size = mask.get("size")
        if not isinstance(size, list) or size != [height, width]:
            raise ValueError(f"run lengths of {str(size)[:40]}, image {[height, width]} (height, width)")
    if box:
        x, y, w, h = (number(value) for value in box)
        return x, y, x + w, y + h
    outlines = polygons(mask)
    if outlines is not None:
        across, down = ([value for outline in outlines for value in outline[start::2]] for start in (0, 1))
        return min(across), min(down), max(across), max(down)
    from pycocotools import mask as masks

    x, y, w, h = (float(value) for value in masks.toBbox(run_lengths(mask, height, width)))
    return x, y, x + w, y + h


def _is_crowd(annotation: Mapping[str, Any], width: int, height: int) -> bool:
    """Whether iscrowd is set and its mask, where it has run lengths, is of more than one piece."""
    mask = annotation.get("segmentation")
    if not annotation.get("iscrowd") or not isinstance(mask, dict):
        return bool(annotation.get("iscrowd"))
    from pycocotools import mask as masks
    from scipy import ndimage

    pieces: int = ndimage.label(masks.decode(run_lengths(mask, height, width)), structure=[[1] * 3] * 3)[1]
    return pieces != 1

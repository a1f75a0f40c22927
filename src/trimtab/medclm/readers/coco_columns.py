"""COCO annotations of which each is as nearly all are: checked column by column, their lesions made many at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.medclm.readers.coco_images import Entry, Listed
from trimtab.medclm.readers.reading import SPLIT_NAMES, Frame, RawImage, ReaderOptions, checked_size
from trimtab.medclm.records import Box, ImageRecord, Lesion, Rejected, inside

_NUMBERS = {int, float}
_LONG = 2**63
_TURNS = 2**0.5, 3**0.5, 5**0.5, 7**0.5


@dataclass(frozen=True, slots=True)
class Columns:
    """Annotations of which each has whole numbers as ids, an image and a class of the file, a box of four numbers, no run
    lengths and no mark of a crowd.

    Attributes:
        of_image: image id as text -> places of its annotations, in order.
        ids: of the annotations, each another.
        corners: (n, 4) x0, y0, x1, y1 in pixels.
        labels: number of each annotation's class name; names that are alike have one number.
        names: class name of each number.
    """

    of_image: Mapping[str, list[int]]
    ids: Sequence[int]
    corners: NDArray[np.float64]
    labels: NDArray[np.int64]
    names: Sequence[str]

    @classmethod
    def of(cls, rows: Sequence[Any], listed: Listed, names: Mapping[str, str]) -> Columns | None:
        """The columns, or None where any annotation is of another kind."""
        if not rows or set(map(type, rows)) != {dict}:
            return None
        ids, owners, classes, boxes, masks, crowds = (
            [row.get(key) for row in rows]
            for key in ("id", "image_id", "category_id", "bbox", "segmentation", "iscrowd")
        )
        if set(map(type, chain(ids, owners, classes))) != {int} or len(set(ids)) < len(ids):
            return None
        if not -_LONG <= min(ids) <= max(ids) < _LONG:
            return None
        if set(map(type, boxes)) != {list} or set(map(len, boxes)) != {4} or dict in map(type, masks) or any(crowds):
            return None
        sides = list(chain.from_iterable(boxes))
        if not set(map(type, sides)) <= _NUMBERS:
            return None
        of_image: defaultdict[int, list[int]] = defaultdict(list)
        for place, owner in enumerate(owners):
            of_image[owner].append(place)
        if not all(map(listed.usable, map(str, of_image))) or not all(str(one) in names for one in set(classes)):
            return None
        try:
            corners = np.fromiter(sides, np.float64, len(sides)).reshape(-1, 4)
        except OverflowError:
            return None
        with np.errstate(all="ignore"):
            corners[:, 2:] += corners[:, :2]
        called = sorted({names[str(one)] for one in set(classes)})
        numbers = {one: called.index(names[str(one)]) for one in set(classes)}
        labels = np.fromiter(map(numbers.__getitem__, classes), np.int64, len(rows))
        return cls({str(owner): places for owner, places in of_image.items()}, ids, corners, labels, called)

    def records(
        self, entries: Sequence[Entry], file: str, images: Path, options: ReaderOptions
    ) -> list[ImageRecord | None]:
        """The records of these images as `assembled` makes them; None of one that needs a closer look, be it rejected or not:
        with several ids, unusable, or with a box that is not inside it, has no area or occurs twice."""
        frames = [_frame(entry, file, images, options, boxed=entry.ids[0] in self.of_image) for entry in entries]
        places = [
            self.of_image.get(entry.ids[0], []) if frame is not None else []
            for entry, frame in zip(entries, frames, strict=True)
        ]
        at = np.fromiter(chain.from_iterable(places), np.int64)
        owner = np.repeat(np.arange(len(entries)), [len(some) for some in places])
        sizes = np.array([(1, 1) if frame is None else frame[:2] for frame in frames], np.float64)[owner]
        corners = self.corners[at]
        low, high = corners[:, :2], corners[:, 2:]
        doubtful = ~((low >= 0) & (low < high) & (high <= sizes)).all(1)
        doubtful |= _alike(owner, self.labels[at], corners)
        for number in set(owner[doubtful].tolist()):
            frames[number] = None
        lesions = self._lesions(at, owner, corners / np.hstack([sizes, sizes]), entries, file, options.rename)
        ends = np.cumsum([len(some) for some in places]).tolist()
        return [
            None if frame is None else _record(entry, frame, tuple(lesions[end - len(some) : end]), file, options)
            for entry, frame, some, end in zip(entries, frames, places, ends, strict=True)
        ]

    def _lesions(
        self,
        at: NDArray[np.int64],
        owner: NDArray[np.int64],
        shares: NDArray[np.float64],
        entries: Sequence[Entry],
        file: str,
        rename: Mapping[str, str],
    ) -> list[Lesion]:
        labels = [rename.get(name, name) for name in self.names]
        images = [entry.ids[0] for entry in entries]
        before, row = [f"{image}/" for image in images], f"{file}:annotation "
        boxes = Box.all_checked({"x0": x0, "y0": y0, "x1": x1, "y1": y1} for x0, y0, x1, y1 in shares.tolist())
        keys = map(str, map(self.ids.__getitem__, at.tolist()))
        return Lesion.all_checked(
            {
                "lesion_id": before[number] + key,
                "image_id": images[number],
                "label": labels[label],
                "box": box,
                "host": None,
                "area_fraction": None,
                "source_row": row + key,
                "flags": (),
            }
            for number, key, label, box in zip(owner.tolist(), keys, self.labels[at].tolist(), boxes, strict=True)
        )


def _record(entry: Entry, frame: Frame, lesions: tuple[Lesion, ...], file: str, options: ReaderOptions) -> ImageRecord:
    identity = entry.ids[0]
    return ImageRecord.of_checked(
        image_id=identity,
        file=inside(entry.file),
        width=frame.width,
        height=frame.height,
        upright=frame.upright,
        patient=options.patient_of(entry.file, entry.patient or identity),
        modality=options.modality,
        split=SPLIT_NAMES.get(entry.split.lower(), "train"),
        lesions=lesions,
        organs=(),
        organ_file=None,
        source=options.source or Path(file).stem,
    )


def _frame(entry: Entry, file: str, images: Path, options: ReaderOptions, *, boxed: bool) -> Frame | None:
    """The image's size as its boxes see it; None where the entry has several ids or its file cannot be used."""
    if len(entry.ids) > 1:
        return None
    image = RawImage(entry.ids[0], entry.file, file, "", declared=entry.size, split=entry.split)
    found = checked_size(image, images, options, boxed=boxed)
    return None if isinstance(found, Rejected) else found


def _alike(owner: NDArray[np.int64], labels: NDArray[np.int64], corners: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Boxes that may be twins, of one class in one image: of one sum, which twins have to the bit, and hardly any others."""
    with np.errstate(all="ignore"):
        total = corners[:, 0] + sum(
            (one * turn for one, turn in zip((*corners.T[1:], labels), _TURNS, strict=True)), 0.0
        )
    order = np.lexsort((total, owner))
    same = (owner[order][1:] == owner[order][:-1]) & (total[order][1:] == total[order][:-1])
    found = np.zeros(len(owner), bool)
    found[order[1:][same]] = True
    return found

"""Organ masks from a folder: one picture per organ, or one label map per image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.inputs import named, read_json_mapping
from trimtab.medclm.organs.source import (
    OrganError,
    beside,
    fitted,
    organ_name,
    without_empty,
)
from trimtab.medclm.pixels import Mask, PictureError, read_mask
from trimtab.medclm.records import ImageRecord

LABELS = "labels.json"


class PngOrgans:
    """One black and white picture per organ and image: FOLDER/{organ}/{image path}.png; any value above 0 is inside.

    Every organ must have its picture for every image (all black where it is not in view), so that a lost file is seen;
    `optional` names organs that may lack some.

    Args:
        folder: the folder.
        organs: subfolders to read; without them all.
        optional: organs whose picture may be missing.
        resize: bring masks of equal proportions but another size to the size of the image.
    """

    def __init__(
        self, folder: Path, organs: Sequence[str] = (), optional: Sequence[str] = (), *, resize: bool = False
    ) -> None:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder; it must hold one folder of mask pictures per organ")
        found = sorted(path.name for path in folder.iterdir() if path.is_dir())
        unknown = sorted({*organs, *optional} - set(found))
        if unknown or not found:
            raise FileNotFoundError(f"{folder} has no folder {unknown or 'per organ'}; it has {found}")
        self.folder, self.resize = folder, resize
        self.organs = tuple(organs) or tuple(found)
        self.optional = frozenset(optional)

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The masks of all organs."""
        found: list[tuple[str, Mask]] = []
        for organ in self.organs:
            path = beside(self.folder / organ, record, ".png")
            try:
                mask = read_mask(path)
            except FileNotFoundError:
                if organ in self.optional:
                    continue
                raise OrganError(record.file, "mask folder lacks an organ", str(path)) from None
            except PictureError as error:
                raise OrganError(record.file, "mask is unreadable", str(error)) from error
            found.append((organ_name(organ), np.asarray(fitted(mask, record, path, resize=self.resize) > 0)))
        return without_empty(found)


class LabelMapOrgans:
    """One label map per image, FOLDER/{image path}.png, whose values are the organs; 0 is background.

    Args:
        folder: the folder.
        labels: value -> organ; without it FOLDER/labels.json, an object {"1": "right lung", ...}.
        resize: as in `PngOrgans`.
    """

    def __init__(self, folder: Path, labels: Mapping[int, str] | None = None, *, resize: bool = False) -> None:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder; it must hold one label map per image")
        self.folder, self.resize = folder, resize
        self.labels = dict(labels) if labels is not None else read_labels(folder / LABELS)

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The masks of the organs present."""
        path = beside(self.folder, record, ".png")
        try:
            values = fitted(read_mask(path), record, path, resize=self.resize)
        except FileNotFoundError:
            raise OrganError(record.file, "label map is missing", str(path)) from None
        except PictureError as error:
            raise OrganError(record.file, "label map is unreadable", str(error)) from error
        return split_labels(values, self.labels, PurePosixPath(record.file).name)


def split_labels(values: NDArray[np.integer[Any]], labels: Mapping[int, str], file: str) -> dict[str, Mask]:
    """Organ -> mask of a label map.

    Raises:
        OrganError: a value other than 0 has no name.
    """
    present = [int(value) for value in np.unique(values) if value != 0]
    unnamed = [value for value in present if value not in labels]
    if unnamed:
        told = f"{unnamed}; {LABELS} or labels= names {sorted(labels)}"
        raise OrganError(file, "label map holds values without a name", told)
    masks: dict[str, Mask] = {}
    for value in present:
        organ = organ_name(labels[value])
        mask = np.asarray(values == value)
        masks[organ] = masks[organ] | mask if organ in masks else mask
    return masks


def read_labels(path: Path) -> dict[int, str]:
    """Value -> organ from a json object.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not an object of numbers above 0 and names.
    """
    if not path.is_file():
        raise FileNotFoundError(f'{path} is missing; it names the values of the label maps: {{"1": "right lung", ...}}')
    with named(path, "must be an object of values and names"):
        labels = {int(value): str(name) for value, name in read_json_mapping(path).items()}
    if not labels or min(labels) < 1:
        raise ValueError(f"{path}: values must be 1 or more, 0 is the background; it has {sorted(labels)}")
    return labels

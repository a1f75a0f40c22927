"""Organ masks from NIfTI label maps: flat ones beside pictures, and volumes whose slices are the images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.medclm.organs.folders import LABELS, read_labels, split_labels
from trimtab.medclm.organs.source import OrganError, beside, fitted
from trimtab.medclm.pixels import Mask
from trimtab.medclm.records import ImageRecord

_SUFFIXES = (".nii.gz", ".nii")
LARGEST = 2**31 - 1


class NiftiOrgans:
    """Label maps in NIfTI: FOLDER/{image path}.nii.gz, or one volume for a folder of slices.

    A flat map (one slice) has the columns of the picture as its first axis and the rows as its second. For an image
    CASE/SLICE.png without a map of its own the volume FOLDER/CASE.nii.gz is used: it is turned to the closest of the
    RAS axes, cut across the body at slice int(SLICE) - first_slice, counted from the feet, and shown in the radiological
    convention: the patient's right on the left, the front up.

    Args:
        folder: the folder.
        labels: value -> organ; without it FOLDER/labels.json.
        first_slice: number in the file name of the lowest slice.
        resize: as in `PngOrgans`.
    """

    def __init__(
        self, folder: Path, labels: Mapping[int, str] | None = None, first_slice: int = 0, *, resize: bool = False
    ) -> None:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder; NIfTI label maps are needed")
        self.folder, self.first_slice, self.resize = folder, first_slice, resize
        self.labels = dict(labels) if labels is not None else read_labels(folder / LABELS)

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The masks of the organs present."""
        file = PurePosixPath(record.file)
        path = _existing(beside(self.folder, record, ""))
        if path is not None:
            values = _volume(path)
            if (values.ndim == 3 and values.shape[2] != 1) or values.ndim not in (2, 3):
                raise OrganError(record.file, "label map is not flat", f"{path.name} has shape {values.shape}")
            return self._named(values.reshape(values.shape[:2]).T, record, path)
        path = _existing(self.folder / file.parent) if file.parent.name else None
        if path is None:
            raise OrganError(record.file, "label map is missing", str(beside(self.folder, record, ".nii.gz")))
        values = _volume(path, canonical=True)
        if values.ndim != 3 or not file.stem.isdigit():
            value = f"{path.name} has shape {values.shape}, the image is called {file.name}"
            raise OrganError(record.file, "image is no numbered slice of a volume", value)
        position = int(file.stem) - self.first_slice
        if not 0 <= position < values.shape[2]:
            value = f"slice {file.stem}; the volume has {self.first_slice} to {self.first_slice + values.shape[2] - 1}"
            raise OrganError(record.file, "slice lies outside the volume", value)
        return self._named(values[::-1, ::-1, position].T, record, path)

    def _named(self, values: NDArray[np.integer[Any]], record: ImageRecord, path: Path) -> Mapping[str, Mask]:
        return split_labels(fitted(values, record, path, resize=self.resize), self.labels, path.name)


def _existing(stem: Path) -> Path | None:
    return next((path for suffix in _SUFFIXES if (path := stem.with_name(stem.name + suffix)).is_file()), None)


def _volume(path: Path, *, canonical: bool = False) -> NDArray[np.integer[Any]]:
    found = path.stat()
    return _values(path, canonical=canonical, stamp=(found.st_mtime_ns, found.st_size))


@lru_cache(maxsize=2)
def _values(path: Path, *, canonical: bool, stamp: tuple[int, int]) -> NDArray[np.integer[Any]]:
    """The whole numbers of a volume; `stamp` tells a file from the one that stood there before."""
    import nibabel

    try:
        picture = nibabel.load(path)
        if canonical:
            picture = nibabel.as_closest_canonical(picture)
        values = np.asarray(picture.dataobj)
    except Exception as error:  # nibabel and gzip raise what they like
        raise OrganError(path.name, "label map is unreadable", str(error)) from error
    if values.dtype.kind not in "buif" or not np.array_equal(values, np.round(values)):
        raise OrganError(path.name, "label map holds values that are not whole numbers")
    if values.size and max(abs(float(values.min())), abs(float(values.max()))) > LARGEST:
        raise OrganError(path.name, "label map holds a value that is no label", f"allowed are 0 to {LARGEST:,}")
    return values.astype(np.int32)

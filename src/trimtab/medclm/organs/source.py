"""The protocol of organ sources, the error they raise, and what all of them check."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trimtab.medclm.pixels import Mask
from trimtab.medclm.records import ImageRecord, Rejected


class OrganSource(Protocol):
    """Gives the organ masks of an image."""

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """Organ -> mask (height, width) of bool, of the image's size; organs not in the picture are left out.

        Args:
            record: the image.
            image: its pixels, for sources that segment; None where they were not read.

        Raises:
            OrganError: the masks of this image cannot be had; `error.rejected` is the row for the report.
        """
        ...


class OrganError(ValueError):
    """The organ masks of one image cannot be used: a file is missing, unreadable, or of another size."""

    def __init__(self, file: str, reason: str, value: str = "", row: str = "") -> None:
        self.rejected = Rejected(file=file, row=row, reason=reason, value=value)
        super().__init__(str(self.rejected))


class Combined:
    """Several sources as one; no organ may come from two of them."""

    def __init__(self, sources: Sequence[OrganSource]) -> None:
        if not sources:
            raise ValueError("Combined needs at least one organ source")
        self.sources = tuple(sources)

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The masks of all sources."""
        found: dict[str, Mask] = {}
        for source in self.sources:
            for organ, mask in source.masks(record, image).items():
                if organ in found:
                    raise OrganError(record.file, "organ comes from two sources", organ)
                found[organ] = mask
        return found


def organ_name(name: str) -> str:
    """A file or class name as the name of an organ: lower case, words apart.

    >>> organ_name("Left_Lung")
    'left lung'
    """
    return " ".join(name.replace("_", " ").lower().split())


def beside(folder: Path, record: ImageRecord, suffix: str) -> Path:
    """The file in `folder` for an image: the image's relative path with another suffix."""
    return folder / PurePosixPath(record.file).with_suffix(suffix)


def fitted(
    mask: NDArray[np.integer[Any]], record: ImageRecord, file: Path, *, resize: bool
) -> NDArray[np.integer[Any]]:
    """`mask` at the size of its image; with `resize` one of equal proportions is brought there by the nearest pixel.

    Raises:
        OrganError: another size, or with `resize` other proportions (off by more than one mask pixel).
    """
    height, width = mask.shape
    if (height, width) == (record.height, record.width):
        return mask
    same_shape = abs(height * record.width - width * record.height) <= max(record.width, record.height)
    if not (resize and same_shape):
        value = f"mask {width} x {height}, image {record.width} x {record.height}"
        hint = "" if not same_shape else "; same proportions: resize=True would scale it"
        raise OrganError(file.name, "mask has another size than its image", value + hint)
    rows = np.minimum((np.arange(record.height) + 0.5) * height / record.height, height - 1).astype(np.intp)
    columns = np.minimum((np.arange(record.width) + 0.5) * width / record.width, width - 1).astype(np.intp)
    scaled: NDArray[np.integer[Any]] = mask.take(rows, axis=0).take(columns, axis=1)
    return scaled


def without_empty(masks: Iterable[tuple[str, Mask]]) -> dict[str, Mask]:
    """The masks that have a pixel set."""
    return {organ: mask for organ, mask in masks if mask.any()}

"""Readers of detection data sets by name: `create("coco", modality="fundus photograph").read(file, folder)`."""

from __future__ import annotations

import importlib
from typing import Any

from trimtab.medclm.readers.reading import Reader, ReaderOptions

__all__ = ["Reader", "ReaderOptions", "create", "names", "options_of"]

_READERS = {
    "coco": ("coco", "CocoReader"),
    "deeplesion": ("deeplesion", "DeepLesionReader"),
    "dicom": ("dicom_folder", "DicomReader"),
    "masks": ("lesion_masks", "MaskReader"),
    "nih": ("nih", "NihReader"),
    "rsna": ("rsna", "RsnaReader"),
    "vindr": ("vindr", "VindrReader"),
    "voc": ("voc", "VocReader"),
    "yolo": ("yolo", "YoloReader"),
}


def names() -> tuple[str, ...]:
    """Names of all readers.

    >>> names()
    ('coco', 'deeplesion', 'dicom', 'masks', 'nih', 'rsna', 'vindr', 'voc', 'yolo')
    """
    return tuple(_READERS)


def options_of(name: str) -> type[ReaderOptions]:
    """The class of reader `name`: its fields are the reader's options.

    Raises:
        ValueError: there is no such reader.
    """
    if name not in _READERS:
        raise ValueError(f"no reader is called {name!r}; there are {', '.join(names())}")
    module, attribute = _READERS[name]
    found: type[ReaderOptions] = getattr(importlib.import_module(f"trimtab.medclm.readers.{module}"), attribute)
    return found


def create(name: str, **options: Any) -> Reader:
    """The reader `name` with `options` (see the class of the reader and `ReaderOptions`).

    Raises:
        ValueError: there is no such reader or no such option, or an option has a wrong value.

    >>> create("coco", modality="fundus photograph", anatomy=("optic_disc",)).modality
    'fundus photograph'
    """
    reader: Reader = options_of(name)(**options)  # type: ignore[assignment]
    return reader

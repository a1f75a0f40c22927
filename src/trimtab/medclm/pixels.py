"""Pixels of medical pictures as uint8: PNG, JPEG, 16-bit PNG and TIFF, DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from trimtab.inputs import damage, shortened
from trimtab.medclm.dicoms import DICOM_SUFFIXES, PictureError, dicom_pixels, dicom_size
from trimtab.medclm.stretching import Window, to_bytes

__all__ = [
    "DICOM_SUFFIXES",
    "ORIENTATION",
    "PICTURE_SUFFIXES",
    "PictureError",
    "Window",
    "is_picture",
    "picture_header",
    "picture_size",
    "read_mask",
    "read_picture",
]

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112
"""The EXIF tag."""


def is_picture(path: Path) -> bool:
    """Whether the file name ends like a picture or a DICOM file."""
    return path.suffix.lower() in PICTURE_SUFFIXES + DICOM_SUFFIXES


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as stored, from the header alone; an EXIF rotation is not applied.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it is not a picture.
    """
    return picture_header(path)[0]


def picture_header(path: Path) -> tuple[tuple[int, int], int]:
    """(width, height) in pixels as stored, and the EXIF orientation: 1 as stored, 2 to 4 mirrored or turned, 5 to 8 lying.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it is not a picture.
    """
    if path.name.lower().endswith(DICOM_SUFFIXES):
        return dicom_size(path), 1
    with _opened(path) as picture:
        return picture.size, _orientation(picture)


def read_picture(path: Path, window: Window | None = None, *, upright: bool = False) -> NDArray[np.uint8]:
    """Pixels (height, width) of a grey picture or (height, width, 3) of a coloured one, uint8.

    DICOM: a palette gives its colours; colours of more than 8 bits are scaled. Grey: the modality LUT, then the file's VOI LUT
    or window (its whole range where it has none, or one of width 0), MONOCHROME1 inverted. Pixel padding has no part in the
    range and is black (ours). Pictures of 16 bits: `window`, or the whole range.

    Args:
        path: the file.
        window: (lowest, highest) value shown, in stored values, or in modality units (Hounsfield) of a DICOM file.
        upright: turn the picture as its EXIF orientation says; without it pixels are as stored.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it cannot be decoded.
        ValueError: the window is empty.
    """
    if window is not None and not window[0] < window[1]:
        raise ValueError(f"window {window} must have its first value below its second")
    if path.suffix.lower() in DICOM_SUFFIXES:
        return dicom_pixels(path, window)
    with _opened(path) as opened:
        try:
            picture = ImageOps.exif_transpose(opened) if upright else opened
            if picture.mode.startswith("I") or picture.mode == "F":
                return to_bytes(np.asarray(picture, dtype=np.float64), window)
            wanted = "L" if picture.mode in ("1", "L", "LA") else "RGB"
            return np.array(picture if picture.mode == wanted else picture.convert(wanted))
        except damage() as error:
            raise PictureError(f"{path} cannot be decoded: {shortened(error, 300)}") from error


def read_mask(path: Path) -> NDArray[np.integer[Any]]:
    """Values (height, width) of a mask picture; a palette gives its indices, a coloured mask is refused.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it cannot be decoded or is coloured.
    """
    with _opened(path) as picture:
        if picture.mode not in ("1", "L", "P", "I", "I;16"):
            raise PictureError(f"{path} has mode {picture.mode}: masks are of one channel (1, 8, 16 bits, palette)")
        try:
            return np.array(picture).astype(np.uint8) if picture.mode == "1" else np.array(picture)
        except damage() as error:
            raise PictureError(f"{path} cannot be decoded: {shortened(error, 300)}") from error


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise
    except damage() as error:
        raise PictureError(f"{path} is not a readable picture: {shortened(error, 300)}") from error


def _orientation(picture: Image.Image) -> int:
    """EXIF orientation; 1 where there is none, where it is damaged, and for TIFF, which Pillow turns itself."""
    told = picture.info.keys() & {"exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"}
    if picture.format == "TIFF" or (picture.format == "PNG" and not told):
        return 1  # of a PNG Pillow would decode all pixels to look behind them
    try:
        found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged EXIF raises whatever the byte at fault leads to; viewers then show the pixels as stored
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


Mask = NDArray[np.bool_]

"""Pixels of medical pictures as uint8: PNG, JPEG, 16-bit PNG and TIFF, DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
DICOM_SUFFIXES = (".dcm", ".dicom")

Window = tuple[float, float]


class PictureError(ValueError):
    """A picture that cannot be opened or decoded; the message names the file."""


def is_picture(path: Path) -> bool:
    """Whether the file name ends like a picture or a DICOM file."""
    return path.suffix.lower() in PICTURE_SUFFIXES + DICOM_SUFFIXES


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) in pixels as stored, from the header alone; an EXIF rotation is not applied.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it is not a picture.
    """
    if path.name.lower().endswith(DICOM_SUFFIXES):
        header = dicom(path, pixels=False)
        size = (int(header.get("Columns", 0)), int(header.get("Rows", 0)))
        if min(size) < 1:
            raise PictureError(f"{path} has no Rows and Columns: it holds no image")
        if int(header.get("NumberOfFrames", 1) or 1) != 1:
            raise PictureError(f"{path} holds {header.NumberOfFrames} frames; one image of one frame is needed")
        return size
    with _opened(path) as picture:
        return picture.size


def read_picture(path: Path, window: Window | None = None) -> NDArray[np.uint8]:
    """Pixels (height, width) of a grey picture or (height, width, 3) of a coloured one, uint8, as stored.

    An EXIF rotation is not applied, because boxes are in stored pixels. DICOM: the modality LUT, then the file's VOI LUT or
    window (its whole range where it has none), and MONOCHROME1 inverted. Pictures of 16 bits: `window`, or the whole range.

    Args:
        path: the file.
        window: (lowest, highest) value shown, in stored values, or in modality units (Hounsfield) of a DICOM file.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it cannot be decoded.
        ValueError: the window is empty.
    """
    if window is not None and not window[0] < window[1]:
        raise ValueError(f"window {window} must have its first value below its second")
    if path.suffix.lower() in DICOM_SUFFIXES:
        return _dicom_pixels(path, window)
    with _opened(path) as picture:
        try:
            if picture.mode.startswith("I") or picture.mode == "F":
                return _to_bytes(np.asarray(picture, dtype=np.float64), window)
            wanted = "L" if picture.mode in ("1", "L", "LA") else "RGB"
            return np.array(picture if picture.mode == wanted else picture.convert(wanted))
        except (OSError, SyntaxError, ValueError) as error:
            raise PictureError(f"{path} cannot be decoded: {error}") from error


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
        except (OSError, SyntaxError, ValueError) as error:
            raise PictureError(f"{path} cannot be decoded: {error}") from error


def dicom(path: Path, pixels: bool = True) -> Any:
    """The data set of a DICOM file, `pydicom.Dataset`.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it is not DICOM.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, stop_before_pixels=not pixels)
    except FileNotFoundError:
        raise
    except (InvalidDicomError, OSError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise PictureError(f"{path} is not a readable DICOM file: {error}") from error


def _dicom_pixels(path: Path, window: Window | None) -> NDArray[np.uint8]:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    data = dicom(path)
    try:
        values = data.pixel_array
        if int(data.get("SamplesPerPixel", 1)) == 3:
            return np.asarray(values, dtype=np.uint8)
        if values.ndim != 2:
            raise PictureError(f"{path} holds {values.shape[0]} frames; one image of one frame is needed")
        values = apply_modality_lut(values, data)
        if window is None:
            values = apply_voi_lut(values, data, index=0)
    except PictureError:
        raise
    except Exception as error:  # pydicom's decoders raise what they like
        raise PictureError(f"{path}: pixels cannot be decoded: {error}") from error
    grey = _to_bytes(np.asarray(values, dtype=np.float64), window)
    return np.asarray(255 - grey if data.get("PhotometricInterpretation") == "MONOCHROME1" else grey)


def _to_bytes(values: NDArray[np.float64], window: Window | None) -> NDArray[np.uint8]:
    low, high = window if window is not None else (float(values.min()), float(values.max()))
    scaled = (values - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.round(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)


def _opened(path: Path) -> Image.Image:
    try:
        return Image.open(path)
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path} is not a readable picture: {error}") from error

"""Pixels and header of DICOM files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trimtab.medclm.stretching import Window, to_bytes

DICOM_SUFFIXES = (".dcm", ".dicom")


class PictureError(ValueError):
    """A picture that cannot be opened or decoded; the message names the file."""


def dicom(path: Path, *, pixels: bool = True) -> Any:
    """The data set of a DICOM file, `pydicom.Dataset`; one without preamble and file meta information is read too.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it is not DICOM.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        try:
            return pydicom.dcmread(path, stop_before_pixels=not pixels)
        except InvalidDicomError:
            data = pydicom.dcmread(path, stop_before_pixels=not pixels, force=True)
            if "Rows" not in data or "Columns" not in data:
                raise
            _name_transfer_syntax(data)
            return data
    except FileNotFoundError:
        raise
    except Exception as error:  # damaged files raise whatever the byte at fault leads to
        raise PictureError(f"{path} is not a readable DICOM file: {_cut(error)}") from error


def dicom_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it is not DICOM, holds no image, or more than one frame.
    """
    return _size(path, dicom(path, pixels=False))


def text_of(header: Any, name: str) -> str:
    """An entry of a header as text; empty where it is missing or damaged."""
    try:
        return str(header.get(name, "") or "")
    except Exception:  # pydicom decodes an entry only now, and raises what it likes
        return ""


def dicom_pixels(path: Path, window: Window | None) -> NDArray[np.uint8]:
    """Pixels as `read_picture` describes them.

    Raises:
        FileNotFoundError: there is no such file.
        PictureError: it cannot be decoded; of a transfer syntax without decoder it names the packages that have one.
    """
    data = dicom(path)
    width, height = _size(path, data)
    try:
        values = np.asarray(data.pixel_array)
        if values.shape[:2] != (height, width):
            raise PictureError(f"{path}: header says {width} x {height}, pixels are of shape {values.shape}")
        kind = text_of(data, "PhotometricInterpretation")
        if values.ndim == 3:
            return _eight_bits(values, int(data.BitsStored))
        if kind == "PALETTE COLOR":
            from pydicom.pixels import apply_color_lut

            coloured = apply_color_lut(values, data)
            return _eight_bits(coloured[..., :3], 8 * coloured.dtype.itemsize)
        padding = _padding(values, data)
        shown = _shown(values, data, window)
    except PictureError:
        raise
    except Exception as error:  # pydicom's decoders raise what they like
        raise PictureError(f"{path}: pixels cannot be decoded: {_without_decoder(data) or _cut(error)}") from error
    grey = to_bytes(shown, window, ~padding if padding.any() else None)
    grey = np.asarray(255 - grey if kind == "MONOCHROME1" else grey)
    grey[padding] = 0
    return grey


def _shown(values: NDArray[Any], data: Any, window: Window | None) -> NDArray[np.float64]:
    """Values in modality units, or after the file's own VOI LUT or window where no other is asked for."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_modality_lut(values, data)
    if window is None and _has_window(data):
        values = apply_voi_lut(values, data, index=0)
    return np.asarray(values, dtype=np.float64)


def _has_window(data: Any) -> bool:
    """Whether the file has a VOI LUT or a window that DICOM allows: a width of 1 or more (LINEAR), else above 0."""
    if data.get("VOILUTSequence"):
        return True
    width, centre = (data.get(name) for name in ("WindowWidth", "WindowCenter"))
    if width in (None, "") or centre in (None, ""):
        return False
    first = float(width[0] if hasattr(width, "__len__") and not isinstance(width, str) else width)
    return first >= 1 if text_of(data, "VOILUTFunction") in ("", "LINEAR") else first > 0


def _padding(values: NDArray[Any], data: Any) -> NDArray[np.bool_]:
    """Where the stored values are padding: PixelPaddingValue, to PixelPaddingRangeLimit where that is given."""
    low = data.get("PixelPaddingValue")
    if low is None:
        return np.zeros(values.shape, dtype=bool)
    high = data.get("PixelPaddingRangeLimit")
    ends = sorted((int(low), int(low if high is None else high)))
    found: NDArray[np.bool_] = (values >= ends[0]) & (values <= ends[1])
    return found if not found.all() else np.zeros(values.shape, dtype=bool)


def _eight_bits(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """Colours of `bits` bits as 8: value * 255 / (2^bits - 1), rounded."""
    if bits == 8:
        return np.asarray(values, dtype=np.uint8)
    return np.round(np.clip(values / (2.0**bits - 1), 0.0, 1.0) * 255.0).astype(np.uint8)


def _size(path: Path, header: Any) -> tuple[int, int]:
    try:
        width, height = int(header.get("Columns", 0) or 0), int(header.get("Rows", 0) or 0)
        frames = int(header.get("NumberOfFrames", 1) or 1)
    except Exception as error:  # an entry that is damaged or occurs several times
        raise PictureError(f"{path}: Rows, Columns or NumberOfFrames is no number: {_cut(error)}") from error
    if min(width, height) < 1:
        raise PictureError(f"{path} has no Rows and Columns: it holds no image")
    if frames != 1:
        raise PictureError(f"{path} holds {frames} frames; one image of one frame is needed")
    return width, height


def _name_transfer_syntax(data: Any) -> None:
    """Without file meta information the encoding that pydicom saw names the transfer syntax; its pixels are then plain."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    meta = getattr(data, "file_meta", None) or FileMetaDataset()
    if "TransferSyntaxUID" not in meta:
        implicit, little = data.original_encoding
        meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        )
    data.file_meta = meta


def _without_decoder(data: Any) -> str:
    """What to install where no decoder for the file's transfer syntax is there; else an empty text."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    syntax = getattr(getattr(data, "file_meta", None), "TransferSyntaxUID", None)
    if syntax is None:
        return ""
    try:
        plugins = get_decoder(syntax).available_plugins if syntax.is_compressed else ("none is needed",)
    except (NotImplementedError, ValueError):
        return f"pydicom has no decoder for {syntax.name}"
    if syntax == JPEGExtended12Bit and "pylibjpeg" not in plugins and text_of(data, "BitsStored") != "8":
        return (
            f"{syntax.name} of 12 bits needs pip install pylibjpeg pylibjpeg-libjpeg (GPL, so not in trimtab[medclm])"
        )
    if plugins:
        return ""
    return f"no decoder for {syntax.name} is installed: pip install 'trimtab[medclm]' (python-gdcm has one)"


def _cut(error: Exception) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= 300 else f"{text[:300]} ..."

"""Reading one picture file as uint8 pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from trimtab.inputs import named

SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
Pixels = np.ndarray[Any, np.dtype[np.uint8]]


def pictures_in(folder: Path, *, below: bool = False) -> list[Path]:
    """The picture files of a folder (with `below` also of its subfolders), sorted by path."""
    return sorted(
        path
        for path in (folder.rglob("*") if below else folder.iterdir())
        if path.suffix.lower() in SUFFIXES and path.is_file() and not path.name.startswith(".")
    )


def read_picture(path: Path, channels: int, size: tuple[int, int] | None) -> Pixels:
    """A picture as (H, W, channels) uint8, turned upright, resized (bilinear, antialiased) to `size` (H, W).

    Raises:
        ValueError: a damaged file, a picture of more than 8 bits per channel, channels other than 1 or 3.
    """
    from PIL import Image, ImageOps

    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 (grey) or 3 (RGB), got {channels}")
    with named(path), Image.open(path, formats=FORMATS) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError(f"mode {picture.mode}: more than 8 bits per channel; convert it first")
        upright = ImageOps.exif_transpose(picture).convert("L" if channels == 1 else "RGB")
        if size is not None and upright.size != (size[1], size[0]):
            upright = upright.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        pixels = np.asarray(upright, dtype=np.uint8)
    return pixels.reshape(*pixels.shape[:2], channels)


def read_mask(path: Path, size: tuple[int, int] | None) -> Pixels:
    """A mask as (H, W) uint8 values, palette index or grey value as stored, resized by the nearest pixel.

    Raises:
        ValueError: a damaged file or a picture in colour.
    """
    from PIL import Image

    with named(path), Image.open(path, formats=FORMATS) as picture:
        if picture.mode not in ("L", "P", "1"):
            raise ValueError(f"mode {picture.mode}: a mask must be grey, black and white or of a palette, 8 bits")
        mask = picture.convert("L") if picture.mode == "1" else picture
        if size is not None and mask.size != (size[1], size[0]):
            mask = mask.resize((size[1], size[0]), Image.Resampling.NEAREST)
        return np.array(mask, dtype=np.uint8)


def same_size(pictures: list[Pixels], paths: list[Path]) -> None:
    """ValueError when one picture differs in size from the first."""
    first = pictures[0].shape
    for picture, path in zip(pictures, paths, strict=True):
        if picture.shape != first:
            raise ValueError(
                f"{path} is {picture.shape[0]} x {picture.shape[1]}, {paths[0]} is {first[0]} x {first[1]}; give "
                "image_size so that all are resized"
            )


def stacked(pictures: list[Pixels], paths: list[Path]) -> Pixels:
    """Pictures of one size as one array.

    Raises:
        ValueError: the sizes differ.
    """
    same_size(pictures, paths)
    return np.stack(pictures)

"""Lesion masks as pictures: every connected component becomes a box."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field

from trimtab.medclm.files import PictureIndex, require_folder
from trimtab.medclm.pixels import PictureError, picture_header, picture_size, read_mask
from trimtab.medclm.readers.reading import RawBox, RawImage, ReaderOptions, assembled, checked_size
from trimtab.medclm.records import ImageRecord, Rejected


class MaskReader(ReaderOptions):
    """Black and white masks, FOLDER/{class}/{image path}.png, or FOLDER/{image path}.png with `label`; above 0 is lesion.

    Pixels that touch, corners included, are one lesion. Every image needs its mask of every class, all black where it has
    none; an image whose masks are all black is a negative.

    Attributes:
        label: the one class of a folder without subfolders.
        min_pixels: smaller components are rejected as specks; 1 keeps all.
    """

    label: str = ""
    min_pixels: int = Field(1, ge=1)

    def read(self, annotations: Path, images: Path) -> Iterator[ImageRecord | Rejected]:
        """Records image by image, by path.

        Raises:
            NotADirectoryError: a folder is missing.
            FileNotFoundError: there are no class folders, or no images.
        """
        require_folder(annotations, "a folder of lesion masks")
        classes = (
            {self.label: annotations}
            if self.label
            else {p.name: p for p in sorted(annotations.iterdir()) if p.is_dir()}
        )
        if not classes:
            raise FileNotFoundError(
                f"{annotations} has no folder per class; give label if its pictures are of one class"
            )
        index = PictureIndex(images)
        if not index.files:
            raise FileNotFoundError(f"{images} holds no pictures")
        for file in index.files:
            if len(index.twins(file)) > 1:
                reason = "two images share one name without suffix, and so their masks"
                yield Rejected(file=annotations.name, row=file, reason=reason, value=", ".join(index.twins(file)))
                continue
            image = RawImage(Path(file).with_suffix("").as_posix(), file, annotations.name, file)
            frame = checked_size(replace(image, declared=self._mask_size(classes, file, images)), images, self)
            if isinstance(frame, Rejected):
                yield frame
                continue
            size = (frame.width, frame.height)
            boxes: list[RawBox] = []
            broken = 0
            for label, folder in classes.items():
                found = self._components(label, folder / Path(file).with_suffix(".png"), size)
                boxes += [item for item in found if isinstance(item, RawBox)]
                rejected = [item for item in found if isinstance(item, Rejected)]
                broken += sum(item.reason != "component is a speck" for item in rejected)
                yield from rejected
            if broken:
                reason = "image lacks a usable mask of a class"
                yield Rejected(
                    file=annotations.name, row=file, reason=reason, value=f"{broken} of {len(classes)} masks"
                )
            else:
                yield from assembled(image, boxes, images, self, frame=frame)

    def _mask_size(self, classes: Mapping[str, Path], file: str, images: Path) -> tuple[int, int] | None:
        """Size of a mask of a picture with an EXIF orientation: masks show which way up it was when they were drawn."""
        try:
            if picture_header(images / file)[1] == 1:
                return None
            return picture_size(next(iter(classes.values())) / Path(file).with_suffix(".png"))
        except (FileNotFoundError, PictureError):
            return None

    def _components(self, label: str, path: Path, size: tuple[int, int]) -> list[RawBox | Rejected]:
        from scipy import ndimage

        name = f"{path.parent.name}/{path.name}"
        try:
            mask = read_mask(path) > 0
        except FileNotFoundError:
            return [Rejected(file=name, row="", reason="mask is missing", value=label)]
        except PictureError as error:
            return [Rejected(file=name, row="", reason="mask is unreadable", value=str(error))]
        if mask.shape != (size[1], size[0]):
            value = f"mask {mask.shape[1]} x {mask.shape[0]}, image {size[0]} x {size[1]}"
            return [Rejected(file=name, row="", reason="mask has another size than its image", value=value)]
        parts, count = ndimage.label(mask, structure=np.ones((3, 3)))
        pixels = np.bincount(parts.ravel(), minlength=count + 1)
        found: list[RawBox | Rejected] = []
        for component, (rows, columns) in enumerate(ndimage.find_objects(parts), start=1):
            row = f"{label} component {component}"
            if pixels[component] < self.min_pixels:
                value = f"{pixels[component]} pixels, min_pixels {self.min_pixels}"
                found.append(Rejected(file=name, row=row, reason="component is a speck", value=value))
            else:
                corners = (float(columns.start), float(rows.start), float(columns.stop), float(rows.stop))
                found.append(RawBox(f"{label}/{component}", label, corners, row))
        return found

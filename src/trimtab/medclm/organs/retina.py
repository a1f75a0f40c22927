"""Anatomy of fundus photographs from the box of the optic disc and the outline of the field of view."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trimtab.medclm.organs.rle import CocoOrgans
from trimtab.medclm.organs.source import OrganError, beside, fitted
from trimtab.medclm.pixels import Mask, PictureError, read_mask
from trimtab.medclm.places import bounds, eye
from trimtab.medclm.records import ImageRecord


class RetinaOrgans:
    """Optic disc, retina, and the four parts of the retina around the disc, for fundus photographs.

    The disc is the ellipse in its box. Parts: superior and inferior are above and below the middle of the disc, nasal is
    the side of the disc away from the middle of the picture, temporal the other; they meet at the disc, not at the
    fovea, which no annotation gives (ours). Where the disc is near the middle of the picture there are no parts.

    Args:
        disc: COCO json with a box of the disc on every image.
        field: folder of masks of the field of view, FIELD/{image path}.png, of the image's proportions; without it the whole
            picture counts as retina.
        category: class name of the disc.
    """

    def __init__(self, disc: Path, field: Path | None = None, category: str = "optic_disc") -> None:
        if field is not None and not field.is_dir():
            raise NotADirectoryError(f"{field} is not a folder; it must hold one mask of the field of view per image")
        self._disc = CocoOrgans(disc, [category], shape="ellipse")
        self.field = field

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """ "optic disc", "retina", and where the eye is known "superior temporal retina" and so on."""
        found = {"optic disc": next(iter(self._disc.masks(record, image).values())), "retina": self._retina(record)}
        disc = bounds(found["optic disc"])
        side = eye({"optic disc": disc}) if disc is not None else None
        if disc is None or side is None:
            return found
        above = np.arange(record.height)[:, None] + 0.5 < disc.centre[1] * record.height
        left = np.arange(record.width)[None, :] + 0.5 < disc.centre[0] * record.width
        temporal = left if side == "right" else ~left
        for vertical, is_vertical in (("superior", above), ("inferior", ~above)):
            for horizontal, is_horizontal in (("temporal", temporal), ("nasal", ~temporal)):
                part = found["retina"] & is_vertical & is_horizontal & ~found["optic disc"]
                if part.any():
                    found[f"{vertical} {horizontal} retina"] = part
        return found

    def _retina(self, record: ImageRecord) -> Mask:
        if self.field is None:
            return np.ones((record.height, record.width), dtype=bool)
        path = beside(self.field, record, ".png")
        try:
            return np.asarray(fitted(read_mask(path), record, path, resize=True) > 0)
        except FileNotFoundError:
            raise OrganError(record.file, "mask of the field of view is missing", str(path)) from None
        except PictureError as error:
            raise OrganError(record.file, "mask is unreadable", str(error)) from error

"""Masks as COCO run lengths: one small file per image (what the builder writes), or one COCO file for a whole set."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.checks import one_of
from trimtab.files import write_text
from trimtab.inputs import damage, read_json, shortened
from trimtab.medclm.coco import category_names, decode, encode, load_coco, run_lengths
from trimtab.medclm.files import identifier, number
from trimtab.medclm.organs.source import (
    OrganError,
    beside,
    organ_name,
    without_empty,
)
from trimtab.medclm.pixels import Mask
from trimtab.medclm.records import ImageRecord


def write_organs(path: Path, masks: Mapping[str, Mask]) -> None:
    """Write the organ masks of one image as json: {"size": [height, width], "organs": {name: run lengths}}.

    Raises:
        ValueError: there are no masks, or they differ in size.
    """
    write_text(path, organs_text(masks))


def organs_text(masks: Mapping[str, Mask]) -> str:
    """What `write_organs` writes.

    Raises:
        ValueError: there are no masks, or they differ in size.
    """
    sizes = {mask.shape for mask in masks.values()}
    if len(sizes) != 1:
        raise ValueError(f"masks of one image must have one size; these have {sorted(sizes)}")
    return json.dumps({"size": list(sizes.pop()), "organs": {organ: encode(mask) for organ, mask in masks.items()}})


def read_organs(path: Path) -> dict[str, Mask]:
    """The masks `write_organs` wrote.

    Raises:
        OrganError: there is no such file or it is not of this form.
    """
    try:
        document = read_json(path)
        height, width = document["size"]
        return {organ: decode(counts, height, width) for organ, counts in document["organs"].items()}
    except FileNotFoundError:
        raise OrganError(str(path), "organ file is missing") from None
    except damage() as error:
        raise OrganError(str(path), "organ file is unreadable", shortened(error, 200)) from error


class RleFolder:
    """One json file of run lengths per image, as `write_organs` writes it: FOLDER/{image path}.json."""

    def __init__(self, folder: Path, required: Sequence[str] = ()) -> None:
        if not folder.is_dir():
            raise NotADirectoryError(f"{folder} is not a folder; organ files of run lengths are needed")
        self.folder = folder
        self.required = tuple(required)

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The masks of the image's file."""
        path = self.folder / record.organ_file if record.organ_file else beside(self.folder, record, ".json")
        found = read_organs(path)
        missing = [organ for organ in self.required if organ not in found]
        if missing:
            raise OrganError(path.name, "organ file lacks an organ", ", ".join(missing))
        for organ, mask in found.items():
            if mask.shape != (record.height, record.width):
                value = f"{organ}: mask {mask.shape[1]} x {mask.shape[0]}, image {record.width} x {record.height}"
                raise OrganError(path.name, "mask has another size than its image", value)
        return without_empty(found.items())


class CocoOrgans:
    """Organs that are classes of a COCO json file: masks where given, else boxes, filled whole or with an ellipse.

    Args:
        file: the json file; its images are matched by `file_name`.
        organs: class names that are organs.
        shape: what fills the box of an annotation without mask: "ellipse" (round organs such as the optic disc) or "box".
    """

    def __init__(self, file: Path, organs: Sequence[str], shape: Literal["ellipse", "box"] = "ellipse") -> None:
        document = load_coco(file)
        names, _ = category_names(document, file.name)
        unknown = sorted(set(organs) - set(names.values()))
        if unknown or not organs:
            raise ValueError(f"{file} has no class {unknown or list(organs)}; it has {sorted(names.values())}")
        one_of("shape", shape, ("ellipse", "box"))
        self.file, self.organs, self.shape = file, tuple(organs), shape
        entries = [entry for entry in document["images"] if isinstance(entry, dict)]
        files = {identifier(entry.get("id")): entry.get("file_name") for entry in entries}
        self._of_image: dict[str, list[tuple[str, Any]]] = {}
        for annotation in document["annotations"]:
            if not isinstance(annotation, dict):
                continue
            name = names.get(identifier(annotation.get("category_id")) or "")
            owner = files.get(identifier(annotation.get("image_id")))
            if name in self.organs and isinstance(owner, str):
                shown = annotation.get("segmentation") or annotation.get("bbox")
                self._of_image.setdefault(owner, []).append((name, shown))

    def masks(self, record: ImageRecord, image: NDArray[np.uint8] | None) -> Mapping[str, Mask]:
        """The masks of the image's annotations; several of one organ are united."""
        found: dict[str, Mask] = {}
        for name, shown in self._of_image.get(record.file, []):
            try:
                mask = self._mask(shown, record.height, record.width)
            except ValueError as error:
                raise OrganError(self.file.name, "mask does not fit its image", str(error), record.file) from error
            organ = organ_name(name)
            found[organ] = found[organ] | mask if organ in found else mask
        missing = [name for name in self.organs if organ_name(name) not in found]
        if missing:
            raise OrganError(self.file.name, "image lacks an organ", ", ".join(missing), record.file)
        return without_empty(found.items())

    def _mask(self, shown: Any, height: int, width: int) -> Mask:
        if isinstance(shown, list) and len(shown) == 4 and not isinstance(shown[0], list):
            x, y, w, h = (number(value) for value in shown)
            if not (all(isfinite(value) for value in (x, y, w, h)) and w > 0 and h > 0):
                raise ValueError(f"a box is x, y, width and height above 0, not {str(shown)[:80]}")
            rows = (np.arange(height)[:, None] + 0.5 - (y + h / 2)) / (h / 2)
            columns = (np.arange(width)[None, :] + 0.5 - (x + w / 2)) / (w / 2)
            inside: Mask = (
                rows**2 + columns**2 <= 1 if self.shape == "ellipse" else np.maximum(abs(rows), abs(columns)) <= 1
            )
            return inside
        from pycocotools import mask as masks

        return np.asarray(masks.decode(run_lengths(shown, height, width)), dtype=bool)

"""Small files the tests of the readers need."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trimtab.medclm.records import Box, ImageRecord, Lesion, Rejected


def picture(path: Path, width: int = 100, height: int = 80) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 255, width * height).astype(np.uint8).reshape(height, width)
    Image.fromarray(ramp).save(path)
    return path


def mask(path: Path, pixels: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)
    return path


def coco(folder: Path, boxes: Sequence[Any], **changes: Any) -> Path:
    """A COCO file of one image a.png (100 x 80) with `boxes`, and the image."""
    picture(folder / "images" / "a.png")
    document = {
        "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
        "categories": [{"id": 1, "name": "nodule"}, {"id": 2, "name": "mass"}],
        "annotations": [
            {"id": number, "image_id": 1, "category_id": 1, "bbox": box} for number, box in enumerate(boxes, start=1)
        ],
        **changes,
    }
    path = folder / "set.json"
    path.write_text(json.dumps(document))
    return path


def image_record(
    *boxes: Box, label: str = "nodule", file: str = "a.png", size: tuple[int, int] = (100, 80)
) -> ImageRecord:
    lesions = tuple(
        Lesion(lesion_id=f"1/{n}", image_id="1", label=label, box=box, source_row=f"set.json:{n}")
        for n, box in enumerate(boxes, start=1)
    )
    return ImageRecord(
        image_id="1",
        file=file,
        width=size[0],
        height=size[1],
        patient="p",
        modality="X-ray",
        source="set",
        lesions=lesions,
    )


def parted(items: Iterable[ImageRecord | Rejected]) -> tuple[list[ImageRecord], list[Rejected]]:
    found = list(items)
    return (
        [item for item in found if isinstance(item, ImageRecord)],
        [item for item in found if isinstance(item, Rejected)],
    )

"""Records, small source folders, and a chat server for the tests of texts and builds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from trimtab.medclm.building import BuildOptions
from trimtab.medclm.organs.rle import write_organs
from trimtab.medclm.records import Box, HostDecision, ImageRecord, Lesion

LABELS = ("nodule", "mass", "effusion")


def host(organ: str = "right lung", side: Any = "right", **changes: Any) -> HostDecision:
    return HostDecision(
        **{"organ": organ, "score": 0.9, "rule": "inside_fraction", "reason": "most of it", "side": side, **changes}
    )


def lesion(
    number: int, label: str, box: tuple[float, float, float, float], organ: Any = None, **changes: Any
) -> Lesion:
    x0, y0, x1, y1 = box
    return Lesion(
        **{
            "lesion_id": f"i/{number}",
            "image_id": "i",
            "label": label,
            "box": Box(x0=x0, y0=y0, x1=x1, y1=y1),
            "host": organ,
            "area_fraction": 0.1 if organ else None,
            "source_row": f"set.json:{number}",
            **changes,
        }
    )


def record(*lesions: Lesion, image: str = "i", **changes: Any) -> ImageRecord:
    return ImageRecord(
        **{
            "image_id": image,
            "file": f"{image}.png",
            "width": 100,
            "height": 80,
            "patient": f"patient of {image}",
            "modality": "chest X-ray",
            "source": "set",
            "lesions": lesions,
            "organs": ("left lung", "right lung"),
            **changes,
        }
    )


def two_classes() -> ImageRecord:
    """Two nodules in the right lung, the second larger, and a mass in the left lung."""
    return record(
        lesion(1, "nodule", (0.1, 0.2, 0.2, 0.3), host()),
        lesion(2, "nodule", (0.1, 0.5, 0.3, 0.7), host()),
        lesion(3, "mass", (0.6, 0.2, 0.9, 0.6), host("left lung", "left")),
    )


def source(folder: Path, images: int = 12, size: int = 40) -> BuildOptions:
    """A COCO set: image n has n % 4 lesions of class n % 3 onwards, two images a patient, lungs as masks."""
    generator = np.random.default_rng(0)
    document: dict[str, list[dict[str, Any]]] = {"images": [], "annotations": [], "categories": []}
    document["categories"] = [{"id": n, "name": label} for n, label in enumerate(LABELS, start=1)]
    right, left = np.zeros((size, size), dtype=bool), np.zeros((size, size), dtype=bool)
    right[4:36, 2:18] = True
    left[4:36, 22:38] = True
    (folder / "images").mkdir(parents=True)
    for number in range(images):
        name = f"{number:03d}.png"
        Image.fromarray(generator.integers(0, 255, (size, size), dtype=np.uint8)).save(folder / "images" / name)
        write_organs(folder / "organs" / f"{number:03d}.json", {"right lung": right, "left lung": left})
        document["images"].append(
            {"id": number, "file_name": name, "width": size, "height": size, "patient": f"p{number // 2}"}
        )
        for which in range(number % 4):
            document["annotations"].append(
                {
                    "id": len(document["annotations"]) + 1,
                    "image_id": number,
                    "category_id": (number + which) % 3 + 1,
                    "bbox": [4 + 20 * (which % 2), 6 + 8 * which, 5 + which, 6],
                }
            )
    (folder / "set.json").write_text(json.dumps(document))
    return BuildOptions(
        detections=folder / "set.json",
        format="coco",
        images=folder / "images",
        reader={"modality": "chest X-ray"},
        organs=(("rle", {"folder": folder / "organs"}),),
        preset="chest",
    )

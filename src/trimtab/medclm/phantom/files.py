"""Phantoms drawn, and written as a data set: pictures, COCO detections with patients, organ masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trimtab.checks import whole
from trimtab.files import replace_atomically, write_text
from trimtab.medclm.coco import encode
from trimtab.medclm.organs.rle import write_organs
from trimtab.medclm.phantom.anatomy import Anatomy, Mask
from trimtab.medclm.phantom.lesions import FINDINGS, PhantomLesion, drawn
from trimtab.medclm.phantom.picture import radiograph
from trimtab.medclm.places import bounds

NORMAL_SHARE = 0.3


@dataclass(frozen=True)
class PhantomImage:
    """One phantom: its picture (size, size) uint8, organ masks (size, size) bool, and findings."""

    picture: NDArray[np.uint8]
    organs: dict[str, Mask]
    lesions: tuple[PhantomLesion, ...]


def draw(seed: int, findings: Sequence[str] | None = None, size: int = 512) -> PhantomImage:
    """The phantom of a seed; the same seed, findings and size give the same pixels.

    Args:
        seed: any whole number from 0.
        findings: classes to put in, out of `FINDINGS`, repeats allowed; one that finds no place is left out. Without it 30 %
            have none and the others one to three, drawn at random.
        size: side in pixels, at least 128.

    Raises:
        ValueError: an unknown finding, or a side below 128.

    >>> phantom = draw(3, findings=["nodule"], size=128)
    >>> phantom.picture.shape, phantom.lesions[0].label, phantom.lesions[0].organ in phantom.organs
    ((128, 128), 'nodule', True)
    """
    unknown = sorted(set(findings or ()) - set(FINDINGS))
    if unknown:
        raise ValueError(f"unknown findings {unknown}; a phantom can have {', '.join(FINDINGS)}")
    whole("size", size, 128)
    generator = np.random.default_rng((seed, 0x7A1))
    labels = list(findings) if findings is not None else _findings(generator)
    anatomy = Anatomy.drawn(generator, size, large_heart="cardiomegaly" in labels)
    taken = np.zeros((size, size), dtype=bool)
    lesions: list[PhantomLesion] = []
    for label in sorted(
        labels, key=lambda name: ("effusion", "consolidation", "mass", "nodule", "cardiomegaly").index(name)
    ):
        lesion = drawn(label, anatomy, generator, taken)
        if lesion is not None:
            lesions.append(lesion)
            around = bounds(lesion.mask)
            if around is not None and label != "cardiomegaly":
                x0, y0, x1, y1 = around.pixels(size, size)
                taken[y0:y1, x0:x1] = True
    return PhantomImage(radiograph(anatomy, lesions, generator), anatomy.organs, tuple(lesions))


def _findings(generator: np.random.Generator) -> list[str]:
    if generator.random() < NORMAL_SHARE:
        return []
    count = int(generator.choice((1, 2, 3), p=(0.5, 0.35, 0.15)))
    labels = [str(label) for label in generator.choice(FINDINGS, size=count)]
    return [label for n, label in enumerate(labels) if label in ("nodule", "mass") or label not in labels[:n]]


def write_phantom(out: Path, images: int = 48, seed: int = 0, size: int = 512) -> Path:
    """Write a data set of phantoms: images/*.png, organs/*.json (run lengths), detections.json (COCO); gives `out`.

    Every patient has one to three images. Annotations carry, beside COCO's keys, the truth `host` and `side`.

    Args:
        out: folder, made if needed; files of an earlier run with the same arguments are written again, equal.
        images: how many.
        seed: of the whole set.
        size: side of the pictures in pixels.

    Raises:
        ValueError: fewer than one image.
    """
    whole("images", images, 1)
    generator = np.random.default_rng((seed, 0x5E7))
    categories = {label: number for number, label in enumerate(FINDINGS, start=1)}
    document: dict[str, list[Any]] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": label} for label, number in categories.items()],
    }
    patient, left = 0, 0
    for number in range(1, images + 1):
        if left == 0:
            patient, left = patient + 1, int(generator.choice((1, 2, 3), p=(0.6, 0.3, 0.1)))
        left -= 1
        name = f"phantom_{number:05d}"
        phantom = draw(int(generator.integers(2**31)), size=size)
        picture = Image.fromarray(phantom.picture)
        replace_atomically(out / "images" / f"{name}.png", partial(_save, picture))
        write_organs(out / "organs" / f"{name}.json", phantom.organs)
        document["images"].append(
            {"id": number, "file_name": f"{name}.png", "width": size, "height": size, "patient": f"P{patient:04d}"}
        )
        for lesion in phantom.lesions:
            annotation = _annotation(lesion, size)
            annotation |= {
                "id": len(document["annotations"]) + 1,
                "image_id": number,
                "category_id": categories[lesion.label],
            }
            document["annotations"].append(annotation)
    write_text(out / "detections.json", json.dumps(document))
    return out


def _save(picture: Image.Image, path: Path) -> None:
    picture.save(path, format="PNG")


def _annotation(lesion: PhantomLesion, size: int) -> dict[str, Any]:
    around = bounds(lesion.mask)
    if around is None:
        raise AssertionError(f"the {lesion.label} has no pixels")
    x0, y0, x1, y1 = around.pixels(size, size)
    return {
        "bbox": [x0, y0, x1 - x0, y1 - y0],
        "area": int(lesion.mask.sum()),
        "iscrowd": 0,
        "segmentation": {"size": [size, size], "counts": encode(lesion.mask)},
        "host": lesion.organ,
        "side": lesion.side,
    }

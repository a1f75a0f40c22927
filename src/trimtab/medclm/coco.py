"""COCO: the file itself, and masks as run lengths."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from pydantic_core import from_json

from trimtab.medclm.files import identifier, require_file, utf8
from trimtab.medclm.pixels import Mask
from trimtab.medclm.records import Rejected

LONGEST_NUMBER = 60
"""Bits of one number in compressed run lengths; pycocotools itself holds no more than 32."""


FAR = 4.0
"""A polygon may reach this many image sides from the corner; pycocotools' time and memory grow with its length (ours)."""


def encode(mask: Mask) -> str:
    """COCO's compressed run lengths of a mask (height, width)."""
    from pycocotools import mask as masks

    counts: bytes = masks.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"]
    return counts.decode("ascii")


def decode(counts: str, height: int, width: int) -> Mask:
    """The mask (height, width) of compressed run lengths.

    Raises:
        ValueError: the run lengths do not cover height x width pixels.

    >>> import numpy as np
    >>> mask = np.eye(3, dtype=bool)
    >>> bool((decode(encode(mask), 3, 3) == mask).all())
    True
    """
    from pycocotools import mask as masks

    covered = covered_pixels(counts)
    if covered != height * width:
        raise ValueError(f"run lengths cover {covered} pixels, not {height} x {width} = {height * width}")
    return np.asarray(masks.decode({"size": [height, width], "counts": counts.encode("ascii")}), dtype=bool)


def covered_pixels(counts: str) -> int:
    """Pixels that compressed run lengths cover: numbers in base 32, the third and later ones as differences."""
    runs: list[int] = []
    value, shift = 0, 0
    for character in counts:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            raise ValueError(f"run lengths hold the character {character!r}")
        value |= (bits & 31) << shift
        shift += 5
        if shift > LONGEST_NUMBER:
            raise ValueError(f"run lengths hold a number of more than {LONGEST_NUMBER} bits")
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            raise ValueError(f"run lengths hold {runs[-1]}, below 0")
        value, shift = 0, 0
    if shift:
        raise ValueError("run lengths end within a number")
    return sum(runs)


def polygons(mask: Any) -> list[list[float]] | None:
    """The polygons [x0, y0, x1, y1, ...] of a COCO `segmentation`, every number checked; None where it is no list.

    Raises:
        ValueError: a polygon has fewer than three corners, an odd number of values, or a value that is no finite number.
    """
    if not isinstance(mask, list):
        return None
    found = []
    for part in mask or [[]]:
        if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
            size = f"{len(part)} values" if isinstance(part, list) else repr(part)[:40]
            raise ValueError(f"a polygon needs x and y of 3 corners or more; one has {size}")
        wrong = [value for value in part if isinstance(value, bool) or not isinstance(value, int | float)]
        if wrong or not all(isfinite(value) for value in part):
            shown = repr(wrong[0] if wrong else next(value for value in part if not isfinite(value)))[:40]
            raise ValueError(f"a polygon holds {shown}, which is no finite number")
        found.append([float(value) for value in part])
    return found


def run_lengths(mask: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO `segmentation` (polygons, plain or compressed run lengths) as pycocotools' compressed run lengths.

    Everything is checked first, since pycocotools checks nothing: what it cannot bear ends the interpreter.

    Raises:
        ValueError: it is none of these, holds a number that is none or too large, or its size is not height x width.
    """
    from pycocotools import mask as masks

    outlines = polygons(mask)
    if outlines is not None:
        reach = max(abs(value) for outline in outlines for value in outline)
        if reach > FAR * max(height, width):
            raise ValueError(f"a polygon reaches to {reach:g}, far outside an image of {width} x {height}")
        length = sum(abs(one - other) for outline in outlines for one, other in zip(outline[2:], outline, strict=False))
        if length > 2 * height * width + 8 * (height + width):
            raise ValueError(f"polygons {length:g} pixels long, more than an image of {width} x {height} can hold")
        merged: dict[str, Any] = masks.merge(masks.frPyObjects(outlines, height, width))
        return merged
    if not isinstance(mask, dict) or "counts" not in mask:
        raise ValueError(f"a mask is a list of polygons or run lengths, not {str(mask)[:80]}")
    size = mask.get("size")
    if not isinstance(size, list | tuple) or list(size) != [height, width] or any(type(side) is bool for side in size):
        raise ValueError(f"run lengths of size {str(size)[:40]}, image {[height, width]} (height, width)")
    counts = mask["counts"]
    if isinstance(counts, list):
        wrong = [run for run in counts if type(run) is not int or run < 0]
        if wrong:
            raise ValueError(f"run lengths hold {str(wrong[0])[:40]!r}; they are whole numbers of 0 or more")
    elif not isinstance(counts, str):
        raise ValueError(f"run lengths are a list of numbers or COCO's text, not {str(counts)[:40]}")
    covered = sum(counts) if isinstance(counts, list) else covered_pixels(counts)
    if covered != height * width:
        raise ValueError(f"run lengths cover {covered} pixels, not {height} x {width} = {height * width}")
    if isinstance(counts, list):
        plain: dict[str, Any] = masks.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        return plain
    return {"size": [height, width], "counts": counts.encode("ascii")}


BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def load_coco(path: Path) -> dict[str, Any]:
    """The document of a COCO json file, with its lists `images`, `annotations` and `categories`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, not json, or one of the lists is missing or `images` is empty.
    """
    raw = require_file(path, "a COCO json file").read_bytes()
    try:
        document = from_json(raw.removeprefix(BYTE_ORDER_MARK))
    except ValueError as error:
        utf8(path)
        raise ValueError(f"{path} is not json: {error}") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise ValueError(f"{path} has no list {key!r}; COCO needs images, annotations and categories")
    if not document["images"]:
        raise ValueError(f"{path} lists no images")
    found: dict[str, Any] = document
    return found


def category_names(document: Mapping[str, Any], file: str) -> tuple[dict[str, str], list[Rejected]]:
    """Category id (as text, see `identifier`) -> name, and the categories that have no usable name or an id twice."""
    found: dict[str, str] = {}
    rejected = []
    for index, category in enumerate(document["categories"]):
        row = f"categories[{index}]"
        identity, name = (
            (identifier(category.get("id")), category.get("name")) if isinstance(category, dict) else (None,) * 2
        )
        if identity is None or not isinstance(name, str) or not name.strip():
            rejected.append(Rejected(file=file, row=row, reason="category without id or name", value=shown(category)))
        elif identity not in found:
            found[identity] = name
        elif found[identity] != name:
            value = f"{identity}: {found[identity]} and {name}"
            rejected.append(Rejected(file=file, row=row, reason="category id occurs twice", value=value[:200]))
    return found, rejected


def shown(row: object) -> str:
    """A row of the document as text for the report, without its mask, cut at 200 characters."""
    if isinstance(row, dict):
        return str({key: value for key, value in row.items() if key != "segmentation"})[:200]
    return str(row)[:200]

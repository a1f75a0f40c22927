"""Where a box lies in the patient: side of the body (or which eye), and zone of the organ.

Radiological convention: a picture is seen as if facing the patient, so the patient's right is on the left of the picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trimtab.medclm.records import Box, Side

Mask = NDArray[np.bool_]
Convention = Literal["radiological", "neurological", "eye", "none"]
Zones = Literal["lung_thirds", "disc_distance", "none"]

MIDLINE_WIDTH = 0.02
"""A box whose middle is this close to the midline, in image widths, lies on it (ours)."""
OFF_CENTRE = 0.1
"""An optic disc this far from the middle, in image widths, tells which eye it is (ours)."""


def bounds(mask: Mask) -> Box | None:
    """The smallest box around a mask; None where no pixel is set.

    >>> mask = np.zeros((4, 10), dtype=bool)
    >>> mask[1, 2:7] = True
    >>> bounds(mask).corners
    (0.2, 0.25, 0.7, 0.5)
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return None
    height, width = mask.shape
    return Box.of_pixels(int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1, width, height)


def midline(organs: Mapping[str, Box]) -> float:
    """The x of the body's middle as a fraction of the width.

    Halfway between the middles of the two lungs' extents; else the middle of the thorax; else of the picture.
    """
    lungs = [organs[name].centre[0] for name in ("left lung", "right lung") if name in organs]
    if len(lungs) == 2:
        return sum(lungs) / 2
    return organs["thorax"].centre[0] if "thorax" in organs else 0.5


def side_and_conflict(
    box: Box, organ: str, organs: Mapping[str, Box], convention: Convention
) -> tuple[Side | None, bool]:
    """(side of the patient, whether the picture contradicts the organ's name).

    A paired organ's name decides ("left lung"); it is contradicted where the organ's mask lies on the other side of the
    midline than the convention says. Other organs go by the middle of the box; a box that is not in the middle and yet reaches
    across the midline (as that of a heart) has no one side (ours).
    """
    if convention == "none":
        return None, False
    if convention == "eye":
        return eye(organs), False
    middle = midline(organs)
    named: Side | None = next((side for side in _SIDES if organ.startswith(f"{side} ")), None)
    if named is not None:
        seen = _side(organs[organ].centre[0], middle, convention)
        return named, seen not in (named, "midline")
    side = _side(box.centre[0], middle, convention)
    across = min(middle - box.x0, box.x1 - middle) > MIDLINE_WIDTH
    return None if across and side != "midline" else side, False


_SIDES: tuple[Side, ...] = ("left", "right")


def _side(x: float, middle: float, convention: Convention) -> Side:
    if abs(x - middle) <= MIDLINE_WIDTH:
        return "midline"
    on_the_left = x < middle
    return "right" if on_the_left == (convention == "radiological") else "left"


def eye(organs: Mapping[str, Box]) -> Side | None:
    """Which eye a fundus photograph shows: the optic disc lies nasally, on the right of a right eye's picture.

    Holds for pictures centred on the macula and not mirrored; None where the disc is near the middle or missing.
    """
    if "optic disc" not in organs:
        return None
    x = organs["optic disc"].centre[0]
    if abs(x - 0.5) < OFF_CENTRE:
        return None
    return "right" if x > 0.5 else "left"


def zone_of(box: Box, hosts: Sequence[str], organs: Mapping[str, Box], aspect: float, zones: Zones) -> str | None:
    """Zone of a box, or None where it has none.

    "lung_thirds": upper, middle, lower zone = thirds of the lung's height, by the middle of the box. "disc_distance":
    from the middle of the box to the margin of the optic disc, in disc diameters (the disc's height).

    Args:
        box: the lesion.
        hosts: its host and the organs that contain it.
        organs: the boxes around the organs.
        aspect: width / height of the picture.
        zones: which zones.
    """
    if zones == "lung_thirds":
        lung = next((organs[host] for host in hosts if host.endswith("lung") and host in organs), None)
        if lung is None:
            return None
        third = int(np.clip((box.centre[1] - lung.y0) / (lung.y1 - lung.y0) * 3, 0, 2))
        return ("upper zone", "middle zone", "lower zone")[third]
    if zones == "disc_distance" and "optic disc" in organs:
        distance = disc_distance(box, organs["optic disc"], aspect)
        if distance <= 0:
            return "on the optic disc"
        if distance <= 1:
            return "within 1 disc diameter of the optic disc"
        return (
            "1 to 3 disc diameters from the optic disc"
            if distance <= 3
            else "more than 3 disc diameters from the optic disc"
        )
    return None


def disc_distance(box: Box, disc: Box, aspect: float) -> float:
    """Distance from the middle of the box to the margin of the optic disc in disc diameters; negative on the disc.

    The diameter is the disc's height; `aspect` is width / height of the picture.
    """
    across = (box.centre[0] - disc.centre[0]) * aspect
    down = box.centre[1] - disc.centre[1]
    return math.hypot(across, down) / (disc.y1 - disc.y0) - 0.5

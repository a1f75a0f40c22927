"""Boxes as each model writes them, by name: which numbers, of what, in which order, in which text."""

from __future__ import annotations

from typing import Literal

from trimtab.checks import one_of
from trimtab.medclm.boxes.forms import BoxFormat
from trimtab.medclm.boxes.lists import Brackets, Json
from trimtab.medclm.boxes.tokens import Tagged, Tokens

FormatName = Literal["unit", "thousand", "qwen2.5", "qwen3", "paligemma", "florence2", "internvl", "gemma"]

FORMATS: dict[str, BoxFormat] = {
    one.name: one
    for one in (
        Brackets("unit", "label [x0, y0, x1, y1], fractions of the picture with four decimals", None),
        Brackets("thousand", "label [x0, y0, x1, y1], thousandths of the picture", 1000),
        Json(
            "qwen2.5", 'JSON {"bbox_2d": [x0, y0, x1, y1], "label": ...}, pixels of the resized picture', "bbox_2d", None,
            ("qwen2_5_vl",),
        ),
        Json(
            "qwen3", 'JSON {"bbox_2d": [x0, y0, x1, y1], "label": ...}, thousandths of the picture', "bbox_2d", 1000,
            ("qwen3_vl", "qwen3_vl_moe", "qwen3_5", "qwen3_5_moe"),
        ),
        Tokens(
            "paligemma", "<locY0><locX0><locY1><locX1> label, numbers 0000 to 1023: round(1023 x fraction), y first",
            "<loc{:04d}>", 1023, ("paligemma",), swapped=True, floored=False, after=True,
        ),
        Tokens(
            "florence2", "label<loc_X0><loc_Y0><loc_X1><loc_Y1>, steps 0 to 999: floor(1000 x fraction), read at their middles",
            "<loc_{}>", 1000, ("florence2",), swapped=False, floored=True, after=False,
        ),
        Tagged(),
        Json(
            "gemma", 'JSON {"box_2d": [y0, x0, y1, x1], "label": ...}, thousandths of the picture, y first', "box_2d", 1000,
            ("gemma3", "gemma3n", "gemma4", "gemma4_unified"), swapped=True,
        ),
    )
}  # fmt: skip
"""Name -> format."""


def format_named(name: str) -> BoxFormat:
    """The format of this name.

    Raises:
        ValueError: there is none.

    Example:
        >>> from trimtab.medclm.records import Box
        >>> box = Box(x0=0.25, y0=0.5, x1=0.5, y1=1.0)
        >>> for name in ("unit", "qwen2.5", "paligemma", "florence2", "internvl"):
        ...     print(format_named(name).inline(box, (756, 504)))
        [0.2500, 0.5000, 0.5000, 1.0000]
        [189, 252, 378, 504]
        <loc0512><loc0256><loc1023><loc0512>
        <loc_250><loc_500><loc_500><loc_999>
        <box>[[250, 500, 500, 1000]]</box>
        >>> format_named("gemma").parse('[{"box_2d": [500, 250, 1000, 500], "label": "nodule"}]', (0, 0))
        [Found(label='nodule', corners=(0.25, 0.5, 0.5, 1.0))]
    """
    return FORMATS[one_of("boxes", name, FORMATS)]

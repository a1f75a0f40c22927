"""Boxes as answers: how each model writes them, what they are coordinates of, and how near one box is to another."""

from trimtab.medclm.boxes.formats import FORMATS, FormatName, format_named
from trimtab.medclm.boxes.forms import BoxFormat, Found
from trimtab.medclm.boxes.matching import generalized_iou, iou, matched, share_found
from trimtab.medclm.boxes.models import ModelBoxes, boxes_of
from trimtab.medclm.boxes.resizing import Resizing, Smart, Stretched, resizing_of

__all__ = [
    "FORMATS", "BoxFormat", "FormatName", "Found", "ModelBoxes", "Resizing", "Smart", "Stretched", "boxes_of", "format_named",
    "generalized_iou", "iou", "matched", "resizing_of", "share_found",
]  # fmt: skip

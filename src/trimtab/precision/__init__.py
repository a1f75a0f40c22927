"""Number formats: what a tensor becomes in few bits, exactly."""

from trimtab.precision.format import FORMATS, Format, describe, named
from trimtab.precision.quantize import quantize
from trimtab.precision.scaling import MX, Block, PerChannel, PerTensor, Scaling
from trimtab.precision.straight_through import StraightThrough

__all__ = [
    "Block",
    "FORMATS",
    "Format",
    "MX",
    "PerChannel",
    "PerTensor",
    "Scaling",
    "StraightThrough",
    "describe",
    "named",
    "quantize",
]

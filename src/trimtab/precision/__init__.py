"""Number formats: what a tensor becomes in few bits, exactly."""

from trimtab.precision.adamw_8bit import AdamW8bit
from trimtab.precision.binarize import Binarize
from trimtab.precision.binary import estimated_slope
from trimtab.precision.blocks import MX, Block
from trimtab.precision.compensate import Compensate
from trimtab.precision.delayed import Delayed
from trimtab.precision.eden import MSEden, ms_eden
from trimtab.precision.eight_bit_state import EightBitState
from trimtab.precision.format import FORMATS, Format, describe, named
from trimtab.precision.frozen_codes import FrozenCodes, freeze_codes
from trimtab.precision.hadamard import Hadamard
from trimtab.precision.lever import LowPrecision
from trimtab.precision.meter import ShrinkageMeter
from trimtab.precision.named_recipes import RECIPES, recipe_named
from trimtab.precision.nvfp4 import NVFP4
from trimtab.precision.oscillation import Oscillation
from trimtab.precision.quantize import quantize
from trimtab.precision.recipes import Accumulator, Keep, Operand, Product, Recipe
from trimtab.precision.scaling import PerChannel, PerTensor, Scaling
from trimtab.precision.shrinkage import Shrinkage, shrinkage, shrinkage_sums
from trimtab.precision.straight_through import StraightThrough, full_precision
from trimtab.precision.subspace_history import SubspaceHistory
from trimtab.precision.zeroth_order import QuantizedZeroOrder

__all__ = [
    "FrozenCodes",
    "QuantizedZeroOrder",
    "SubspaceHistory",
    "freeze_codes",
    "AdamW8bit",
    "EightBitState",
    "Binarize",
    "Accumulator",
    "Block",
    "Compensate",
    "Delayed",
    "FORMATS",
    "Format",
    "Hadamard",
    "Keep",
    "LowPrecision",
    "MX",
    "MSEden",
    "NVFP4",
    "Operand",
    "Oscillation",
    "PerChannel",
    "PerTensor",
    "Product",
    "RECIPES",
    "Recipe",
    "Scaling",
    "Shrinkage",
    "ShrinkageMeter",
    "StraightThrough",
    "describe",
    "estimated_slope",
    "full_precision",
    "ms_eden",
    "named",
    "quantize",
    "recipe_named",
    "shrinkage",
    "shrinkage_sums",
]

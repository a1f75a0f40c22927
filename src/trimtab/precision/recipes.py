"""Recipes: in which numbers the operands of a layer's three products are held, layer by layer and until when."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch

from trimtab.checks import flag, number, whole
from trimtab.precision.blocks import Block
from trimtab.precision.eden import MSEden
from trimtab.precision.format import Format, named
from trimtab.precision.hadamard import Hadamard
from trimtab.precision.quantize import quantize
from trimtab.precision.rounding import Rounding
from trimtab.precision.scaling import PerTensor, Scaling

PRODUCTS = ("fprop", "dgrad", "wgrad")
"""`Y = X W'`, `dX = dY W`, `dW = dY' X`."""
FACTORS = {"fprop": ("activation", "weight"), "dgrad": ("gradient", "weight"), "wgrad": ("gradient", "activation")}
"""The factors of each, in the order in which a recipe names their operands."""


@dataclass(frozen=True)
class Operand:
    """How one factor of a product is rounded; groups that share a scale lie along the dimension that the product sums over.

    Args:
        format: number format of the elements, or its name.
        scaling: as for `quantize`, default None. Blocks have no dimension of their own to say: it is the contraction.
            `PerTensor` is one scale for the factor, `PerChannel()` one for each of its rows (tokens, output units). `Delayed`
            is one scale for the factor, from the steps before: the lever remembers for each layer (see `LowPrecision`).
        rounding: default "nearest".

    Raises:
        TypeError, ValueError: as `quantize`; a scaling along another dimension.

    Example:
        >>> from trimtab.precision import Block
        >>> Operand("e4m3", Block(128))
        Operand(e4m3, Block(rule='absmax', size=128, dim=-1))
    """

    format: Format | str
    scaling: Scaling | None = None
    rounding: Rounding = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", named(self.format))
        with warnings.catch_warnings():  # of bias, which the recipes' sources know
            warnings.simplefilter("ignore")
            quantize(torch.empty(0), self.format, self.rounding, scaling=self.scaling)
        dim = getattr(self.scaling, "dim", None)
        if dim not in (None, -1):
            raise ValueError(
                f"an operand's groups lie along its product's contraction; leave dim to it, got {self.scaling!r}"
            )

    @property
    def draws(self) -> bool:
        """Whether rounding takes random numbers."""
        return self.rounding == "stochastic" or (self.scaling is not None and self.scaling.random)

    @property
    def either_way(self) -> bool:
        """Whether the numbers are the same whichever dimension is summed over, so that one rounding serves two products."""
        tiles = isinstance(self.scaling, Block) and self.scaling.rows == self.scaling.size
        alike = self.scaling is None or isinstance(self.scaling, PerTensor) or tiles
        return alike and not self.draws

    def __repr__(self) -> str:
        parts = [str(getattr(self.format, "name", self.format))]
        parts += [repr(self.scaling)] if self.scaling is not None else []
        parts += [self.rounding] if self.rounding != "nearest" else []
        return f"Operand({', '.join(parts)})"


@dataclass(frozen=True)
class Product:
    """The two factors of a product; None leaves one as it is.

    Args:
        first, second: operands in the order of `FACTORS`.
        hadamard: both are turned by the same random Hadamard transform, in blocks of so many along the contraction, before
            they are rounded: their product stays what it was, outliers are spread over a block. None (default): not.
        fresh: whether each call has signs of its own, which `MSEden` needs to be unbiased. Default False: the same for all
            layers throughout, as arXiv 2509.25149 has them.

    Raises:
        TypeError, ValueError: no operands; a size that is no power of two; signs without a transform; `MSEden` without one of
            its size.
    """

    first: Operand | None = None
    second: Operand | None = None
    hadamard: int | None = None
    fresh: bool = False

    def __post_init__(self) -> None:
        for operand in (self.first, self.second):
            if operand is not None and not isinstance(operand, Operand):
                raise TypeError(f"a factor of a product is an Operand, or None to leave it, got {operand!r}")
        if self.hadamard is not None:
            Hadamard(self.hadamard)
        elif flag("fresh", self.fresh):
            raise ValueError("fresh=True draws the signs of a Hadamard transform anew, and hadamard is None")
        for operand in (self.first, self.second):
            if operand is not None and isinstance(operand.scaling, MSEden) and operand.scaling.size != self.hadamard:
                raise ValueError(
                    f"{operand.scaling!r} is for tensors turned in groups of {operand.scaling.size}; give hadamard the same "
                    f"size, got {self.hadamard}"
                )

    @property
    def rounds(self) -> bool:
        """Whether anything is rounded."""
        return self.first is not None or self.second is not None

    def __getitem__(self, place: int) -> Operand | None:
        return (self.first, self.second)[place]


@dataclass(frozen=True)
class Accumulator:
    """A running sum of few bits inside a product, as tensor cores keep it.

    Of every `step` products the sum is exact (float32); it is added to a running sum that is rounded to `format` each time;
    after `promote` products the running sum is added to a float32 sum and begins at zero again.

    Args:
        format: of the running sum. Default e8m13: DeepSeek-V3 reports about 14 bits on an H800 (arXiv 2412.19437).
        step: products summed at once. Default 32, the contraction of one FP8 instruction.
        promote: a multiple of `step`; None never promotes. Default 128, the interval of DeepSeek-V3.
        rounding: default "toward_zero" [ours]: the hardware cuts off.

    Raises:
        ValueError: values out of range.
    """

    format: Format | str = "e8m13"
    step: int = 32
    promote: int | None = 128
    rounding: Rounding = "toward_zero"

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", named(self.format))
        whole("step of an accumulator", self.step, 1)
        quantize(torch.empty(0), self.format, self.rounding)
        if self.rounding == "stochastic":
            raise ValueError("an accumulator rounds without random numbers: nearest or toward_zero, got 'stochastic'")
        if self.promote is not None and (whole("promote", self.promote, self.step) % self.step):
            raise ValueError(f"promote must be a multiple of step={self.step}, got {self.promote}")


@dataclass(frozen=True)
class Keep:
    """Which layers stay in full precision.

    Args:
        names: shell patterns of the layers' names in the model, such as "*head" or "layers.0.*".
        first, last: share of the layers, in the model's order, at its two ends; a number of layers rounded to the nearest
            [ours], so that of few layers none is kept.

    Raises:
        TypeError: `names` is one string.
        ValueError: shares outside of 0 to 1.
    """

    names: tuple[str, ...] = ()
    first: float = 0.0
    last: float = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.names, tuple):
            raise TypeError(f"names must be a tuple of patterns, got {self.names!r}")
        for label in ("first", "last"):
            number(label, getattr(self, label), least=0, most=1)

    def reasons(self, layers: tuple[str, ...]) -> dict[str, str]:
        """Those of the layers that stay, each with the reason.

        Example:
            >>> Keep(("*head",), first=0.3).reasons(("0", "1", "2", "head"))
            {'0': 'among the first 1 of 4 layers, kept in full precision', 'head': "name matches keep pattern '*head'"}
        """
        first, last = (round(part * len(layers)) for part in (self.first, self.last))
        found = {}
        for place, name in enumerate(layers):
            pattern = next((each for each in self.names if fnmatchcase(name, each)), None)
            if pattern is not None:
                found[name] = f"name matches keep pattern {pattern!r}"
            elif place < first:
                found[name] = f"among the first {first} of {len(layers)} layers, kept in full precision"
            elif place >= len(layers) - last:
                found[name] = f"among the last {last} of {len(layers)} layers, kept in full precision"
        return found


@dataclass(frozen=True)
class Recipe:
    """How a layer computes its three products, `Y = X W'`, `dX = dY W` and `dW = dY' X`.

    Args:
        name: what tables call it.
        fprop: operands (activation, weight), a `Product` or a pair.
        dgrad: operands (gradient, weight).
        wgrad: operands (gradient, activation).
        keep: layers that stay in full precision. Default: none.
        until: share of the training after which all products are in full precision; needs the number of steps. Default 1:
            never.
        accumulator: how sums inside the products are kept. Default None: float32.
        source: where the recipe is written down.

    Raises:
        TypeError, ValueError: parts that are none; nothing that is rounded.

    Example:
        >>> from trimtab.precision import MX
        >>> e4m3 = Operand("e4m3", MX(rule="power_of_two"))
        >>> Recipe("forward only", fprop=(e4m3, e4m3)).dgrad.rounds
        False
    """

    name: str
    fprop: Product | tuple[Operand | None, Operand | None] = Product()
    dgrad: Product | tuple[Operand | None, Operand | None] = Product()
    wgrad: Product | tuple[Operand | None, Operand | None] = Product()
    keep: Keep = Keep()
    until: float = 1.0
    accumulator: Accumulator | None = None
    source: str = "ours"

    def __post_init__(self) -> None:
        for label in PRODUCTS:
            given = getattr(self, label)
            if isinstance(given, tuple) and len(given) == 2:
                object.__setattr__(self, label, Product(*given))
            elif not isinstance(given, Product):
                raise TypeError(f"{label} of a recipe is a Product or a pair of operands, got {given!r}")
        if not isinstance(self.keep, Keep):
            raise TypeError(f"keep must be a Keep, got {self.keep!r}")
        if not (self.accumulator is None or isinstance(self.accumulator, Accumulator)):
            raise TypeError(f"accumulator must be an Accumulator or None, got {self.accumulator!r}")
        number("until", self.until, above=0.0, most=1.0)
        if not any(self[label].rounds for label in PRODUCTS) and self.accumulator is None:
            raise ValueError(f"recipe {self.name!r} rounds nothing; give fprop, dgrad or wgrad an operand")

    def __getitem__(self, product: str) -> Product:
        found: Product = getattr(self, product)
        return found

    def replace(self, **changes: Any) -> Recipe:
        """The recipe with other values of some arguments."""
        return dataclasses.replace(self, **changes)

    def without_hadamard(self) -> Recipe:
        """The recipe without Hadamard transforms."""
        return self.replace(
            **{label: dataclasses.replace(self[label], hadamard=None, fresh=False) for label in PRODUCTS}
        )

    def to_nearest(self) -> Recipe:
        """The recipe with every operand rounded to nearest."""

        def nearest(operand: Operand | None) -> Operand | None:
            return None if operand is None else dataclasses.replace(operand, rounding="nearest")

        products = {label: self[label] for label in PRODUCTS}
        return self.replace(
            **{
                label: Product(nearest(one.first), nearest(one.second), one.hadamard, one.fresh)
                for label, one in products.items()
            }
        )

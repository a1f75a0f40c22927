"""Scales shared by blocks: runs along one dimension, or tiles of two."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.checks import whole
from trimtab.precision.format import Format
from trimtab.precision.scaling import Rule, Scales, Scaling, absmax, dimension, divided


@dataclass(frozen=True, repr=False)
class Block(Scaling):
    """One scale for each run of `size` entries along dimension `dim` (default the last), or for each tile of `rows` such runs.

    Tiles, `rows` > 1, lie in two dimensions: `dim` and the other one of the last two (before the last where `dim` is the last,
    else the last), so that a matrix and its transpose, cut along the other dimension, have one set of scales: `Block(128,
    rows=128)`. Where `size` or `rows` does not divide the length, the last block is shorter: as if zeros followed, which are
    cut off again.

    Example:
        >>> Block(size=2).scales(torch.tensor([6.0, 1.0, 3.0]), "e2m1")
        tensor([1.0000, 0.5000])
        >>> Block(size=2, rows=2).scales(torch.tensor([[6.0, 1.0], [3.0, 12.0]]), "e2m1")
        tensor([2.])
    """

    size: int = 32
    dim: int = -1
    rows: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("size of a block", self.size, 1)
        whole("rows of a block", self.rows, 1)

    def __repr__(self) -> str:
        # what came later shows where it is set, so that the settings in older checkpoints stay what they were
        old = ("rule", "size", "dim")
        shown = [each for each in fields(self) if each.name in old or getattr(self, each.name) != each.default]
        return f"{type(self).__name__}({', '.join(f'{each.name}={getattr(self, each.name)!r}' for each in shown)})"

    @property
    def square(self) -> bool:
        """Whether blocks are the same for a matrix and its transpose."""
        return self.rows == self.size

    def lines(self, x: Tensor) -> Tensor:
        """The dimension of the blocks last; a single line becomes one of many."""
        dim = dimension(self.dim, x)
        if self.rows == 1:
            lines = x.movedim(dim, -1)
            return lines if x.ndim > 1 else lines.unsqueeze(0)
        if x.ndim < 2:
            raise ValueError(f"{self!r} makes tiles of two dimensions, got a tensor of shape {tuple(x.shape)}")
        lines = x.movedim([-2 if dim == x.ndim - 1 else -1, dim], [-2, -1])
        if lines.shape[-2] % self.rows == 0 and lines.shape[-2]:
            return torch.unflatten(lines, -2, (-1, self.rows))
        return lines if x.ndim > 2 else lines.unsqueeze(0)

    def pads(self, lines: Tensor) -> bool:
        """Whether blocks have to be copied: tiles, and a last block that is shorter."""
        return self.rows > 1 or lines.shape[-1] % self.size > 0

    def grouped(self, lines: Tensor) -> Tensor:
        """One row for each block; the last of a line is filled with zeros."""
        high, wide = self._short(lines.shape)
        if high or wide:
            lines = F.pad(lines, (0, wide, 0, high))
        if self.rows > 1:
            tiles = torch.unflatten(torch.unflatten(lines, -1, (-1, self.size)), -3, (-1, self.rows))
            lines = tiles.transpose(-3, -2)
        return lines.reshape(-1, self.rows * self.size)

    def ungrouped(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `grouped`."""
        high, wide = self._short(shape)
        if self.rows == 1:
            return rows.view([*shape[:-1], shape[-1] + wide])[..., : shape[-1]]
        down, across = (shape[-2] + high) // self.rows, (shape[-1] + wide) // self.size
        tiles = rows.view([*shape[:-2], down, across, self.rows, self.size]).transpose(-3, -2)
        return tiles.flatten(-2).flatten(-3, -2)[..., : shape[-2], : shape[-1]]

    def _short(self, shape: torch.Size) -> tuple[int, int]:
        """How many rows and columns the last block lacks."""
        return -shape[-2] % self.rows, -shape[-1] % self.size


@dataclass(frozen=True, repr=False)
class MX(Block):
    """The microscaling formats of the Open Compute Project (MX 1.0, arXiv 2310.10537): 32 entries share an e8m0 scale.

    e8m0 holds 2^-127 to 2^127; scales beyond are set to the nearer of the two. MXINT8's elements are k / 64 (int8 k; intN:
    k / 2^(N - 2)): of the whole numbers k that are rounded here the scale is 2^-6 times the shared one. `rule` is "floor"
    (default, the specification's), "even", "ceil" or "power_of_two"; `Scaling` has the formulas.

    Under "floor" and "even" the largest entries may lie above the format's largest number, saturate, and so bias stochastic
    rounding. With `unbiased=True` (arXiv 2502.20586) the scale stays, but entries are multiplied by max / 2^(emax + 1), 3/4 for
    e2m1, between scaling and rounding, and by its inverse afterwards: none saturates. Scales then end at 2^-127 for integers
    as well.

    Example:
        >>> from trimtab.precision import quantize
        >>> quantize(torch.tensor([0.01, -0.0035]), "e2m1", scaling=MX())
        tensor([ 0.0117, -0.0039])
    """

    rule: Rule = field(default="floor", kw_only=True)
    unbiased: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rule == "absmax":
            raise ValueError(
                "an MX scale is a power of two: rule must be floor, even, ceil or power_of_two, got 'absmax'"
            )
        if self.unbiased and self.rule not in ("floor", "even"):
            raise ValueError(f"rule={self.rule!r} is unbiased already; unbiased=True is for floor and even")

    @property
    def overflows(self) -> bool:
        """Whether a scaled entry can lie above the format's largest number."""
        return super().overflows and not self.unbiased

    @property
    def biases(self) -> str | None:
        """What is not biased, where this is."""
        base = super().biases
        return None if base is None or self.unbiased else f"MX(unbiased=True) makes room first, {base}"

    def of_rows(
        self,
        rows: Tensor,
        format: Format,
        dtype: torch.dtype,
        whole: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Scales:
        """The shared scale of each block; with `unbiased` apart for the two ways."""
        scale = self.from_absmax(absmax(rows).to(dtype), format, rows.dtype)
        if not self.unbiased:
            return Scales(scale)
        room = format.max / math.ldexp(2.0, format.max_exponent)
        return Scales(divided(scale, room), room / scale)

    def lowest_exponent(self, dtype: torch.dtype, format: Format) -> int:
        """-127 of the shared scale, whatever the dtype; less what an integer element implies."""
        return -127 - (0 if self.unbiased else _implied(format))

    def highest_exponent(self, dtype: torch.dtype, format: Format) -> int:
        """127 of the shared scale, whatever the dtype; less what an integer element implies."""
        return 127 - _implied(format)


def _implied(format: Format) -> int:
    """Integer elements of an MX block are fractions below 2: the exponent of their step, sign reversed."""
    return format.mantissa - 1 if format.exponent == 0 else 0

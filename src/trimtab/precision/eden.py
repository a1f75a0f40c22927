"""MS-EDEN: nearest rounding after a random rotation, made unbiased by the block scales."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from trimtab.checks import number, whole
from trimtab.precision.blocks import Block
from trimtab.precision.format import Format, named
from trimtab.precision.hadamard import Hadamard
from trimtab.precision.nvfp4 import HEADROOM_SCALE, LARGEST_SCALE, decoded, round_scale, tensor_scale
from trimtab.precision.quantize import quantize
from trimtab.precision.rounding import Rounder
from trimtab.precision.scaling import Scales, absmax, divided

CHUNK = 1 << 17


@dataclass(frozen=True, repr=False)
class MSEden(Block):
    """Scales of NVFP4 that correct what rounding to nearest shrinks (arXiv 2601.22813), for tensors turned by `Hadamard(size)`.

    In each group of `size` entries, cut into blocks of `block`: with q the entries over their block's e4m3 scale s, clipped
    and rounded to nearest,

        c = sum q_exact^2 / sum q_exact q        s' = c s, rounded to e4m3 at random, up with the probability of its part

    and the result is `q s' / S`. Its product with the group is the group's square, so after a rotation by random signs, which
    gives every other direction no preference, the mean is the group itself; the error is less than half that of stochastic
    rounding. The mean is over rotations and scales both: one rotation kept for ever is biased. Where the rotation is a
    Hadamard matrix and not any, this holds up to the part of a group that its signs do not mix (measured in `docs/methods`).

    Args:
        size: of a group, the size of the rotation; default 128.
        dim: default the last.
        block: entries that share a scale, default 16.
        room: block maxima lie at 6 / room; default 17/16 x 0.93, from the authors' code: a little is clipped.

    Example:
        >>> x = torch.linspace(-1, 1, 128)
        >>> y = quantize(Hadamard(128)(x), "e2m1", scaling=MSEden(), generator=torch.Generator().manual_seed(0))
        >>> abs(float(Hadamard(128).inverse(y) @ x / (x @ x)) - 1) < 0.05
        True
    """

    size: int = 128
    block: int = field(default=16, kw_only=True)
    room: float = field(default=17 / 16 * 0.93, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("block of MS-EDEN", self.block, 1, self.size)
        number("room of MS-EDEN", self.room, above=0.0)
        if self.size % self.block:
            raise ValueError(f"blocks of {self.block} must divide a group of {self.size} entries")
        if self.rule != "absmax" or self.rows != 1:
            raise ValueError(
                f"MS-EDEN has e4m3 scales of runs: rule must be absmax and rows 1, got {self.rule!r}, {self.rows}"
            )

    @property
    def random(self) -> bool:
        """The scales are rounded at random."""
        return True

    @property
    def overflows(self) -> bool:
        """The largest entries may be clipped, which the scale makes up for."""
        return True

    def check(self, format: Format, rounding: str = "nearest") -> None:
        """ValueError for roundings that the correction is not about."""
        if rounding != "nearest":
            raise ValueError(
                f"MS-EDEN rounds entries to nearest and scales at random; rounding must be 'nearest', got {rounding!r}"
            )

    def lowest_exponent(self, dtype: torch.dtype, format: Format) -> int:
        """Products of a scale and 1 / S may be subnormal in float32."""
        return -149

    def of_tensor(self, x: Tensor, format: Format) -> Tensor:
        """S, with room for scales that grow."""
        return tensor_scale(absmax(x.reshape(1, -1)), HEADROOM_SCALE * format.max / self.room)

    def of_rows(
        self,
        rows: Tensor,
        format: Format,
        dtype: torch.dtype,
        whole: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Scales:
        """For each entry of a group its block's factors: s for the way in, the corrected s' for the way out."""
        whole = self.of_tensor(rows, format) if whole is None else whole
        rounder = Rounder(format, "nearest", "saturate", None, dtype, rows.device, max(CHUNK, self.size))
        parts = [
            self._of_part(part, format, whole, rounder, generator)
            for part in torch.split(rows, max(CHUNK // self.size, 1))
        ]
        both = [torch.cat(each) for each in zip(*parts, strict=True)]
        decode, encode = (each.repeat_interleave(self.block, 1).to(dtype) for each in both)
        return Scales(decode, encode)

    def _of_part(
        self, rows: Tensor, format: Format, whole: Tensor, rounder: Rounder, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor]:
        blocks = rows.reshape(-1, self.block)
        top = format.max / self.room
        stored = round_scale(
            (absmax(blocks).float() * (whole * divided(torch.ones_like(whole), top))).clamp_(max=LARGEST_SCALE),
            "nearest",
        )
        scales = decoded(stored, whole, rounder.dtype)
        assert scales.encode is not None
        exact = blocks.to(rounder.dtype) * scales.encode
        rounded = torch.empty_like(exact)
        rounder(exact, rounded)
        weight = stored.double().square()  # entries of a group are compared in units of S
        squares = (exact.double().square().sum(1, keepdim=True) * weight).view(rows.shape[0], -1).sum(1, keepdim=True)
        products = (
            ((exact.double() * rounded).sum(1, keepdim=True) * weight).view(rows.shape[0], -1).sum(1, keepdim=True)
        )
        correction = torch.where(products == 0, 1.0, squares / products)
        wanted = (stored.view(rows.shape[0], -1) * correction).float()
        corrected = _at_random(wanted, generator)
        back = decoded(stored, whole, torch.float32)
        assert back.encode is not None
        return corrected * whole.reciprocal(), back.encode.view(rows.shape[0], -1)


def _at_random(wanted: Tensor, generator: torch.Generator | None) -> Tensor:
    """Numbers from 0 to 448 in e4m3: one of the two neighbours, so that the mean is the number."""
    return quantize(wanted, named("e4m3"), "stochastic", generator=generator)


def ms_eden(x: Tensor, turn: Hadamard, generator: torch.Generator | None = None, block: int = 16) -> Tensor:
    """`x` turned, rounded to NVFP4 by `MSEden`, and turned back.

    Example:
        >>> x = torch.linspace(-1, 1, 256)
        >>> float((ms_eden(x, Hadamard(128), torch.Generator().manual_seed(1)) - x).square().mean()) < 0.01
        True
    """
    turned = turn(x)
    scaling = MSEden(turn.size, turn.dim, block=block)
    return turn.inverse(quantize(turned, "e2m1", scaling=scaling, generator=generator))

"""Scales that bring a tensor, a channel or a block into a format's range before it is rounded."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from trimtab.checks import one_of
from trimtab.parameters import Entry
from trimtab.precision.cuda_rounding import largest_of_rows
from trimtab.precision.format import Format, named

Rule = Literal["absmax", "power_of_two", "floor", "even", "ceil"]


class Scales(NamedTuple):
    """What one group, or each of several, is brought into range by; both broadcast to the rows.

    Attributes:
        decode: what a rounded number is multiplied by.
        encode: what a number is multiplied by before it is rounded. None: it is divided by `decode`.
        fits: known that no result lies beyond the largest number of the tensor's dtype.
    """

    decode: Tensor
    encode: Tensor | None = None
    fits: bool = False

    def part(self, first: int, end: int) -> Scales:
        """Those of some rows; one scale is that of all."""
        if len(self.decode) == 1:
            return self
        return Scales(self.decode[first:end], None if self.encode is None else self.encode[first:end], self.fits)


@dataclass(frozen=True)
class Scaling:
    """What all scalings share: one scale s per group of entries; the numbers rounded are x / s, the result is s times them.

    With A the largest magnitude in the group, `max` the format's largest number, m its mantissa bits and `emax` the
    exponent of `max`:

        absmax        s = A / max
        power_of_two  s = 2^ceil(log2(A / max)), the smallest power of two without overflow
        floor         s = 2^(floor(log2 A) - emax), the rule of OCP's MX specification; the largest entries may saturate
        even          as floor, with A first rounded to m mantissa bits
        ceil          s = 2^(ceil(log2 A) - emax)

    A group with a NaN or an infinity becomes NaN as a whole, as a NaN scale does in the MX specification. Scales are at least
    float32's smallest normal number, 2^-126 (under MX 2^-127, times the integers' own step; float64's smallest normal for
    float64 tensors), which is also the scale of zeros; a group whose entries all lie far below that loses precision.
    """

    rule: Rule = field(default="absmax", kw_only=True)

    def __post_init__(self) -> None:
        one_of("rule", self.rule, get_args(Rule))

    @property
    def overflows(self) -> bool:
        """Whether x / s can lie above the format's largest number."""
        return self.rule not in ("absmax", "power_of_two")

    @property
    def biases(self) -> str | None:
        """Why stochastic rounding under this scaling is biased, and what is not; None where it is unbiased."""
        if self.rule not in ("floor", "even"):
            return None
        return "rule='ceil' or 'power_of_two' cannot saturate"

    @property
    def random(self) -> bool:
        """Whether the scales themselves draw random numbers."""
        return False

    def check(self, format: Format, rounding: str = "nearest") -> None:
        """ValueError where this scaling is not for the format or the rounding."""

    def lowest_exponent(self, dtype: torch.dtype, format: Format) -> int:
        """Exponent of the smallest scale."""
        return -1022 if dtype == torch.float64 else -126

    def highest_exponent(self, dtype: torch.dtype, format: Format) -> int:
        """Exponent of the largest scale that is a power of two."""
        return 1023 if dtype == torch.float64 else 127

    def lines(self, x: Tensor) -> Tensor:
        """A view of `x` that can be cut along its first dimension without cutting a group."""
        return x if x.ndim else x.view(1)

    def pads(self, lines: Tensor) -> bool:
        """Whether `grouped` of these lines has to fill up a group."""
        return False

    def grouped(self, lines: Tensor) -> Tensor:
        """The lines, or some of them, with one group per row; a view where it can be."""
        raise NotImplementedError

    def ungrouped(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `grouped`, for lines of the shape given."""
        raise NotImplementedError

    def of_tensor(self, x: Tensor, format: Format) -> Tensor | None:
        """What the groups' scales depend on beside their own entries, shape (1, 1); None (default): nothing."""
        return None

    def remember(self, x: Tensor, whole: Tensor | None) -> None:
        """Take note of a tensor that is rounded now; `whole` is what `of_tensor` said of it. Nothing, but with a memory."""

    def of_last(self, x: Tensor, format: Format) -> Tensor | None:
        """The same of the tensor that was rounded last, x, without remembering it."""
        return self.of_tensor(x, format)

    def of_rows(
        self,
        rows: Tensor,
        format: Format,
        dtype: torch.dtype,
        whole: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Scales:
        """The scales of some rows of a tensor, shape (rows, 1).

        Args:
            rows: one group in each, in the tensor's own dtype.
            format: of the elements.
            dtype: to compute in, float32 or float64.
            whole: what `of_tensor` said.
            generator: for scales that are rounded at random.
        """
        return Scales(self.from_absmax(absmax(rows).to(dtype), format, rows.dtype))

    def scales(self, x: Tensor, format: str | Format) -> Tensor:
        """The scales of the groups of `x` in float32 (float64 for float64), in the order of the rows; shape (groups,).

        Example:
            >>> PerTensor().scales(torch.tensor([1.0, -6.0]), "e2m1")
            tensor([1.])
        """
        rows = self.grouped(self.lines(x.detach()))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        format = named(format)
        self.check(format)
        return self.of_rows(rows, format, wide, self.of_tensor(x.detach(), format)).decode.squeeze(-1)

    def from_absmax(self, largest: Tensor, format: Format, carrier: torch.dtype) -> Tensor:
        """The scales for the largest magnitudes given (float32 or float64), elementwise, of a tensor of dtype `carrier`."""
        dtype = torch.float64 if carrier == torch.float64 else torch.float32
        if self.rule == "absmax":
            scale = divided(largest, format.max).clamp_min_(math.ldexp(1.0, self.lowest_exponent(dtype, format)))
        else:
            # in float64 no float32 is subnormal: its exponent bits are floor(log2), and adding below them rounds up
            one = 1 << 52
            carry = {
                "floor": 0,
                "even": one >> (format.mantissa + 1),
                "ceil": one - 1,
                "power_of_two": one - 1 - int((math.frexp(format.max)[0] * 2 - 1) * one),
            }[self.rule]
            power = largest.double().view(torch.int64).add(carry).bitwise_right_shift_(52)
            low, high = self.lowest_exponent(dtype, format), self.highest_exponent(dtype, format)
            power.sub_(1023 + format.max_exponent).clamp_(low, high)
            scale = power.add_(1023).bitwise_left_shift_(52).view(torch.float64).to(largest.dtype)
        return scale.add_(largest - largest)  # NaN where that is no number


@dataclass(frozen=True)
class PerTensor(Scaling):
    """One scale for the whole tensor.

    Example:
        >>> from trimtab.precision import quantize
        >>> quantize(torch.tensor([0.01, -0.0035]), "e2m1", scaling=PerTensor())
        tensor([ 0.0100, -0.0033])
    """

    def grouped(self, lines: Tensor) -> Tensor:
        """One row."""
        return lines.reshape(1, -1)

    def ungrouped(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `grouped`."""
        return rows.view(shape)

    def of_tensor(self, x: Tensor, format: Format) -> Tensor:
        """The largest magnitude."""
        return absmax(x.reshape(1, -1))

    def of_rows(
        self,
        rows: Tensor,
        format: Format,
        dtype: torch.dtype,
        whole: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Scales:
        """The one scale; the row may be a part of the tensor."""
        largest = absmax(rows) if whole is None else whole
        return Scales(self.from_absmax(largest.to(dtype), format, rows.dtype))


@dataclass(frozen=True)
class PerChannel(Scaling):
    """One scale for each output channel: for each index of dimension `dim`, or of several taken together.

    Default None: where a lever rounds, the output dimension that the tensor's owner tells (0 for Linear and convolutions, 1 for
    transposed convolutions and transformers' Conv1D, experts and outputs for stacked experts); of a tensor by itself 0.

    Example:
        >>> PerChannel().scales(torch.tensor([[6.0, 1.0], [0.0, 3.0]]), "e2m1")
        tensor([1.0000, 0.5000])
    """

    dim: int | tuple[int, ...] | None = None

    def lines(self, x: Tensor) -> Tensor:
        """Channels first."""
        dims = (0,) if self.dim is None else (self.dim,) if isinstance(self.dim, int) else self.dim
        if not dims:
            return x.unsqueeze(0)
        return x.movedim([dimension(dim, x) for dim in dims], list(range(len(dims))))

    def grouped(self, lines: Tensor) -> Tensor:
        """One row for each channel."""
        first = len(self.dim) if isinstance(self.dim, tuple) and self.dim else 1
        return lines.reshape(math.prod(lines.shape[:first]), -1)

    def of(self, entry: Entry) -> PerChannel:
        """This scaling with the dimensions of the entry's channels, where `dim` does not say them."""
        if self.dim is not None or entry.parameter.ndim < 2 or entry.owner is None:
            return self
        return replace(self, dim=tuple(axis for axis in (entry.stack_axis, entry.output_axis) if axis is not None))

    def ungrouped(self, rows: Tensor, shape: torch.Size) -> Tensor:
        """The inverse of `grouped`."""
        return rows.view(shape)


def absmax(rows: Tensor) -> Tensor:
    """Largest magnitude of each row, NaN where there is one; shape (rows, 1); never copies the whole tensor."""
    if rows.shape[0] == 1:
        low, high = torch.aminmax(rows)
        return torch.maximum(low.neg(), high).view(1, 1)
    if (found := largest_of_rows(rows)) is not None:
        return found
    together = max((1 << (17 if rows.device.type == "cpu" else 26)) // rows.shape[1], 1)
    buffer = torch.empty_like(rows[:together], memory_format=torch.contiguous_format)
    return torch.cat([_row_max(torch.abs(part, out=buffer[: len(part)])) for part in torch.split(rows, together)])


def _row_max(rows: Tensor) -> Tensor:
    """Largest of each row; short ones are halved first, since torch reduces only long ones quickly."""
    while 4 < rows.shape[1] < 32 and rows.shape[1] % 2 == 0:
        half = rows.shape[1] // 2
        rows = torch.maximum(rows[:, :half], rows[:, half:])
    return rows.amax(-1, keepdim=True)


def divided(tensor: Tensor, number: float) -> Tensor:
    """`tensor / number` rounded once on every device: a GPU would multiply with the inverse, which is rounded itself."""
    return tensor / torch.full_like(tensor, number)


def dimension(dim: int, x: Tensor) -> int:
    """The dimension counted from the front; ValueError where the tensor has none such."""
    if not x.ndim:
        raise ValueError("a tensor without dimensions (one number) has no channels or blocks; PerTensor() fits it")
    if not -x.ndim <= dim < x.ndim:
        raise ValueError(f"dim must be a dimension of the tensor, of shape {tuple(x.shape)}, got {dim}")
    return dim % x.ndim

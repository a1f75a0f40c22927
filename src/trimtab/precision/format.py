"""What a number format is: data, not code."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import hint, one_of, whole

NanCodes = Literal["ieee", "all_ones", "negative_zero", "none"]


@dataclass(frozen=True)
class Format:
    """A sign bit, an exponent field and a mantissa field, and which codes are special.

    With stored exponent E and mantissa M the value is `2^(E - bias) (1 + M / 2^mantissa)`, and for E = 0 it is
    `2^(1 - bias) M / 2^mantissa` (a subnormal number). A symmetric integer format is the case without exponent field:
    every value is a subnormal, and the bias makes their step 1.

    Args:
        name: what tables and messages call it.
        exponent: bits of the exponent, 0 (integers) to 11.
        mantissa: bits of the mantissa, 0 to 52; with 0 a tie goes to the even code, as in IEEE P3109.
        bias: default `2^(exponent - 1) - 1`, as in IEEE 754.
        infinities: whether a code stands for infinity; it is the first above the largest number. Without mantissa bits
            special codes take whole binades from the top: `binary8p1` of P3109 ends at 2^62.
        nan: codes for NaN. "ieee": the largest exponent is kept for infinity and NaN. "all_ones": one code, the last.
            "negative_zero": the code that would be -0. "none": no code; a NaN put in stays NaN as a mark [ours].
        subnormals: False: numbers below the smallest normal round to zero or to it.
        signed_zero: whether -0 exists; without it -0 becomes +0.

    Raises:
        TypeError, ValueError: fields of a wrong type or out of range, or special codes that do not go together.

    Example:
        >>> Format("mine", exponent=3, mantissa=4).max
        15.5
    """

    name: str
    exponent: int
    mantissa: int
    bias: int | None = None
    infinities: bool = True
    nan: NanCodes = "ieee"
    subnormals: bool = True
    signed_zero: bool = True

    def __post_init__(self) -> None:
        for field, low, high in (("exponent", 0, 11), ("mantissa", 0, 52)):
            whole(f"{field} bits of format {self.name!r}", getattr(self, field), low, high)
        if self.bias is None:
            object.__setattr__(self, "bias", max(2 ** (self.exponent - 1) - 1, 0) if self.exponent else 0)
        whole(f"bias of format {self.name!r}", self.bias)
        one_of(f"nan of format {self.name!r}", self.nan, get_args(NanCodes))
        if self.nan == "ieee" and not (self.infinities and self.exponent >= 2 and self.mantissa >= 1):
            raise ValueError(
                f"format {self.name!r}: nan='ieee' keeps the largest exponent for infinity and NaN, so it needs "
                f"infinities=True, 2 bits of exponent and 1 of mantissa, got infinities={self.infinities}, "
                f"exponent={self.exponent}, mantissa={self.mantissa}"
            )
        if self.nan == "negative_zero" and self.signed_zero:
            raise ValueError(f"format {self.name!r}: nan='negative_zero' takes the code of -0; set signed_zero=False")
        if self.exponent == 0 and (self.mantissa < 1 or not self.subnormals):
            raise ValueError(f"format {self.name!r} without exponent bits needs mantissa >= 1 and subnormals=True")
        if self.largest_code < max(1, 2**self.mantissa * (self.exponent > 0)):
            raise ValueError(
                f"format {self.name!r}: {self.exponent} exponent and {self.mantissa} mantissa bits are too few for its "
                "special codes and a normal number"
            )
        if not (self.min_exponent - self.mantissa >= -1074 and self.max_exponent <= 1023):
            raise ValueError(f"format {self.name!r} with bias {self.bias} goes beyond the range of float64")

    @property
    def largest_code(self) -> int:
        """Exponent and mantissa fields of the largest number, as one whole number."""
        if self.nan == "ieee":
            return (((1 << self.exponent) - 1) << self.mantissa) - 1
        return (1 << (self.exponent + self.mantissa)) - 1 - (self.nan == "all_ones") - self.infinities

    @property
    def bits(self) -> int:
        """Bits of a code, the sign included."""
        return 1 + self.exponent + self.mantissa

    @property
    def min_exponent(self) -> int:
        """Exponent of the smallest normal number."""
        assert self.bias is not None
        return 1 - self.bias

    @property
    def max_exponent(self) -> int:
        """Exponent of the largest number's binade: `2^max_exponent <= max < 2^(max_exponent + 1)`."""
        if self.exponent == 0:
            return math.frexp(self.max)[1] - 1
        assert self.bias is not None
        return (self.largest_code >> self.mantissa) - self.bias

    @property
    def max(self) -> float:
        """The largest number.

        Example:
            >>> named("e4m3").max, named("int4").max
            (448.0, 7.0)
        """
        if self.exponent == 0:
            return math.ldexp(self.largest_code, self.min_exponent - self.mantissa)
        fraction = self.largest_code & ((1 << self.mantissa) - 1)
        return math.ldexp((1 << self.mantissa) + fraction, self.max_exponent - self.mantissa)

    @property
    def smallest_normal(self) -> float:
        """The smallest number that has all mantissa bits; for integers, the power of two above the largest."""
        return math.ldexp(1.0, self.min_exponent)

    @property
    def smallest_subnormal(self) -> float:
        """The smallest number above zero (the smallest normal when there are no subnormals)."""
        return math.ldexp(1.0, self.min_exponent - self.mantissa * self.subnormals)

    def values(self) -> Tensor:
        """All numbers from 0 to max, ascending; float64. ValueError above 16 bits (there would be too many).

        Example:
            >>> named("e2m1").values().tolist()
            [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        """
        if self.bits > 16:
            raise ValueError(f"format {self.name!r} has {self.bits} bits; its values are listed up to 16 bits")
        fraction = torch.arange(2**self.mantissa, dtype=torch.float64)
        below = fraction if self.subnormals else fraction[:1]
        step = math.ldexp(1.0, self.min_exponent - self.mantissa)
        parts = [below * step]
        if self.exponent:
            binades = range(self.min_exponent, self.max_exponent + 1)
            parts += [(2**self.mantissa + fraction) * math.ldexp(1.0, e - self.mantissa) for e in binades]
        values = torch.cat(parts)
        return values[values <= self.max]

    def fits(self, dtype: torch.dtype) -> bool:
        """Whether every number of this format is one of `dtype`, a floating-point type of torch.

        Example:
            >>> named("e5m2").fits(torch.float16), named("fp16").fits(torch.bfloat16)
            (True, False)
        """
        limits = torch.finfo(dtype)
        significant = self.mantissa + (self.exponent > 0)
        return (
            2.0 ** (1 - significant) >= limits.eps
            and self.max <= limits.max
            and self.smallest_subnormal >= limits.smallest_normal * limits.eps
        )


def _integer(bits: int) -> Format:
    """Symmetric: -(2^(bits - 1) - 1) to 2^(bits - 1) - 1."""
    return Format(f"int{bits}", 0, bits - 1, 2 - bits, infinities=False, nan="none", signed_zero=False)


def _finite(name: str, exponent: int, mantissa: int) -> Format:
    return Format(name, exponent, mantissa, infinities=False, nan="none")


FORMATS: dict[str, Format] = {
    each.name: each
    for each in (
        Format("fp16", 5, 10),
        Format("bf16", 8, 7),
        Format("e4m3", 4, 3, infinities=False, nan="all_ones"),
        Format("e5m2", 5, 2),
        Format("e4m3fnuz", 4, 3, 8, infinities=False, nan="negative_zero", signed_zero=False),
        Format("e5m2fnuz", 5, 2, 16, infinities=False, nan="negative_zero", signed_zero=False),
        _finite("e3m2", 3, 2),
        _finite("e2m3", 2, 3),
        _finite("e2m1", 2, 1),
        _integer(8),
        _integer(4),
    )
}
ALIASES = {
    "float16": "fp16", "half": "fp16", "bfloat16": "bf16", "e4m3fn": "e4m3", "fp8": "e4m3", "fp6": "e3m2", "fp4": "e2m1",
    "e5m10": "fp16", "e8m7": "bf16",
}  # fmt: skip

_PATTERN = re.compile(r"e(\d+)m(\d+)(?:b(\d+))?(ieee|fnuz|fn|finite)?")


def named(name: str | Format) -> Format:
    """The format called `name`; a `Format` comes back as it is.

    Known are the names in `FORMATS` (e4m3, e3m2, e2m3 and e2m1 as the Open Compute Project defines them), `float16`,
    `bfloat16`, `fp8` (e4m3), `fp6` (e3m2), `fp4` (e2m1), `int2` to `int16` (symmetric), `binary8p1` to `binary8p7` (IEEE
    P3109: 8 bits of that precision, infinity in the last code, NaN in that of -0), and `eXmY` for X bits of exponent and Y of
    mantissa, by default with IEEE 754's special codes. After it may stand `bN` (the bias) and one of `ieee`
    (`e4m3ieee`), `fn` (no infinity, one NaN), `fnuz` (no infinity, no -0, one NaN; bias one larger than IEEE's), `finite`
    (no special codes).

    Raises:
        TypeError: neither a string nor a Format.
        ValueError: no such format; the message offers the nearest names.

    Example:
        >>> named("e3m4").max, named("e2m1").max, named("e4m3ieee").max
        (15.5, 6.0, 240.0)
    """
    if isinstance(name, Format):
        return name
    if not isinstance(name, str):
        raise TypeError(f"a format is a name or a trimtab.precision.Format, got {name!r}")
    key = name.strip().lower()
    key = ALIASES.get(key, key)
    if key in FORMATS:
        return FORMATS[key]
    if match := re.fullmatch(r"int(\d+)", key):
        bits = int(match[1])
        if not 2 <= bits <= 16:
            raise ValueError(f"integer formats have 2 to 16 bits, got {name!r}")
        return _integer(bits)
    if match := re.fullmatch(r"binary8p([1-7])", key):
        precision = int(match[1])
        bias = 2 ** (7 - precision)
        return Format(key, 8 - precision, precision - 1, bias, infinities=True, nan="negative_zero", signed_zero=False)
    if match := _PATTERN.fullmatch(key):
        exponent, mantissa = int(match[1]), int(match[2])
        bias = None if match[3] is None else int(match[3])
        special = match[4] or "ieee"
        if special == "fnuz":
            bias = 2 ** min(max(exponent - 1, 0), 11) if bias is None else bias
            return Format(key, exponent, mantissa, bias, infinities=False, nan="negative_zero", signed_zero=False)
        if special == "ieee":
            return Format(key, exponent, mantissa, bias)
        return Format(key, exponent, mantissa, bias, infinities=False, nan="all_ones" if special == "fn" else "none")
    raise ValueError(
        f"unknown number format {name!r}; {hint(key, [*FORMATS, *ALIASES], 'formats')}; int2 to int16, and eXmY for X exponent "
        "and Y mantissa bits, are formats too"
    )


def describe(format: str | Format) -> str:
    """A text table: limits, special codes, and the numbers of every binade with their step.

    Formats of up to 6 bits are listed in full.

    Example:
        >>> print(describe("e2m1"))
        e2m1: 4 bits = 1 sign + 2 exponent + 1 mantissa, bias 1
          largest            6
          smallest normal    1
          smallest subnormal 0.5
          infinity no, NaN no, -0 yes
          from  to   step  numbers
          0     0.5  0.5         2
          1     1.5  0.5         2
          2     3    1           2
          4     6    2           2
          all: 0 0.5 1 1.5 2 3 4 6
    """
    format = named(format)
    names = {"ieee": "yes", "all_ones": "one code", "negative_zero": "one code (that of -0)", "none": "no"}
    parts = [f"{format.exponent} exponent + {format.mantissa} mantissa, bias {format.bias}"]
    if format.exponent == 0:
        parts = [f"{format.mantissa} magnitude, whole numbers"]
    lines = [f"{format.name}: {format.bits} bits = 1 sign + {parts[0]}", f"  largest            {format.max:g}"]
    if format.exponent:
        lines.append(f"  smallest normal    {format.smallest_normal:g}")
        small = f"{format.smallest_subnormal:g}" if format.subnormals and format.mantissa else "none"
        lines.append(f"  smallest subnormal {small}")
    answer = {True: "yes", False: "no"}
    lines.append(f"  infinity {answer[format.infinities]}, NaN {names[format.nan]}, -0 {answer[format.signed_zero]}")
    rows = [("from", "to", "step", "numbers")]
    for exponent in range(format.min_exponent - 1, format.max_exponent + 1 if format.exponent else format.min_exponent):
        low = 0.0 if exponent < format.min_exponent else math.ldexp(1.0, exponent)
        step = math.ldexp(1.0, max(exponent, format.min_exponent) - format.mantissa)
        count = 2**format.mantissa if low or format.subnormals else 1
        high = min(low + (count - 1) * step, format.max)
        rows.append((f"{low:g}", f"{high:g}", f"{step:g}", str(round((high - low) / step) + 1)))
    if len(rows) > 40:
        rows = [*rows[:4], ("...", "...", "...", "..."), *rows[-3:]]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row[:3], widths[:3], strict=True)]
        lines.append("  " + "  ".join([*cells, row[3].rjust(widths[3])]))
    if format.bits <= 6:
        lines.append("  all: " + " ".join(f"{value:g}" for value in format.values().tolist()))
    return "\n".join(lines)

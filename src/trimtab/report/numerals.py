"""Numbers as people read them: the same digits down a column, no exponent beside a number written out."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
RAISED = str.maketrans("-0123456789", "\u207b\u2070\u00b9\u00b2\u00b3\u2074\u2075\u2076\u2077\u2078\u2079")


def scientific(value: float, digits: int = 3) -> str:
    """With a power of ten.

    Example:
        >>> scientific(0.0000234), scientific(-1.5e9), scientific(0.0)
        ('2.34\u00d710\u207b\u2075', '\u22121.50\u00d710\u2079', '0')
    """
    if value == 0:
        return "0"
    mantissa, power = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}\u00d710{str(int(power)).translate(RAISED)}".replace("-", MINUS)


def column(values: Sequence[float | None], digits: int = 3, *, signed: bool = False) -> list[str]:
    """The numbers of a column with the same decimals, so that they stand below each other; blank for None.

    The greatest gets `digits` digits, the least (of those that are not zero) at least two; a column that spans more than
    five decades, or lies beyond a million or below a ten-thousandth, is written with powers of ten throughout.

    Example:
        >>> column([1334.5, 2.5, None]), column([0.5, -0.04])
        (['1,334.5', '2.5', ''], ['0.500', '\u22120.040'])
        >>> column([1.9e-7, 1900.0])
        ['1.90\u00d710\u207b\u2077', '1.90\u00d710\u00b3']
    """
    sizes = [abs(value) for value in values if value]
    if not sizes:
        return ["" if value is None else "0" for value in values]
    high, low = math.floor(math.log10(max(sizes))), math.floor(math.log10(min(sizes)))
    if high - low > 5 or high >= 6 or high < -4:
        return ["" if value is None else scientific(value, digits) for value in values]
    decimals = max(0, digits - 1 - high, 1 - low if low < high else 0)
    sign = "+" if signed else ""
    return ["" if value is None else f"{value:{sign},.{decimals}f}".replace("-", MINUS) for value in values]


def spans(
    means: Sequence[float | None], halves: Sequence[float | None], digits: int = 3, *, signed: bool = False
) -> list[str]:
    """Means with half their intervals, with the same decimals down the column; the mean alone where there is no half.

    Example:
        >>> spans([12.34, 5.6, None], [0.5, None, None])
        ['12.3 \u00b1 0.5', '5.6', '']
    """
    texts = column(means, digits, signed=signed)
    first = next((text for text in texts if text), "")
    if "\u00d7" in first:
        return [
            text if half is None or not text else f"{text} \u00b1 {scientific(half, 2)}"
            for text, half in zip(texts, halves, strict=True)
        ]
    decimals = len(first.partition(".")[2])
    return [
        text if half is None or not text else f"{text} \u00b1 {half:,.{decimals}f}"
        for text, half in zip(texts, halves, strict=True)
    ]


def intervals(
    means: Sequence[float | None], ends: Sequence[tuple[float | None, float | None]], digits: int = 3, sign: str = ""
) -> list[str]:
    """Means with the ends of their intervals, with the same decimals down the column.

    Example:
        >>> intervals([0.522, 0.3, None], [(0.3, 0.9081), (None, None), (None, None)])
        ['0.522 (0.300 to 0.908)', '0.300', '']
    """
    texts = column(means, digits)
    first = next((text for text in texts if text), "")
    decimals = len(first.partition(".")[2])
    found = []
    for text, (low, high) in zip(texts, ends, strict=True):
        between = ""
        if text and low is not None and high is not None:
            two = [
                scientific(x, 2) if "\u00d7" in first else f"{x:,.{decimals}f}".replace("-", MINUS) for x in (low, high)
            ]
            between = f" ({two[0]} to {two[1]})"
        found.append(sign + text + between if text else "")
    return found


def times(value: float, sign: str = "\u00d7") -> str:
    """A factor with two or three digits.

    Example:
        >>> times(0.3149), times(2.0), times(143.2), times(0.0004)
        ('\u00d70.31', '\u00d72.0', '\u00d7143', '\u00d74.0\u00d710\u207b\u2074')
    """
    if value and (abs(value) < 0.001 or abs(value) >= 1e5):
        return f"{sign}{scientific(value, 2)}"
    decimals = 0 if abs(value) >= 100 else 1 if abs(value) >= 1 else 2 if abs(value) >= 0.1 else 3
    return f"{sign}{value:,.{decimals}f}"


def tick_text(value: float) -> str:
    """A tick of a logarithmic axis: written out from a hundredth to a million, else as a power of ten.

    Example:
        >>> tick_text(2e-5), tick_text(1e-3), tick_text(0.05), tick_text(2000.0)
        ('2×10⁻⁵', '10⁻³', '0.05', '2,000')
    """
    if 0.01 <= abs(value) < 1e6:
        return f"{value:,.6g}"
    return scientific(value, 1).removeprefix("1×")

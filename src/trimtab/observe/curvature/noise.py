"""What the noise of a small batch adds to the largest eigenvalue, taken off again."""

from __future__ import annotations

import math

from trimtab.checks import non_negative, number


def denoised_top(seen: float, noise: float) -> float:
    """The eigenvalue l > 0 of a matrix that, under symmetric noise of strength s, is seen as `l + s / l`: the larger root.

    The curvature of b examples is that of all of them plus noise, of which each entry has the variance sigma^2 / b: with P
    parameters `s = sigma^2 P / b`. Its eigenvalues alone fill `[-2 sqrt(s), 2 sqrt(s)]`. An eigenvalue `l > sqrt(s)` stands
    out of them, as `l + s / l`; a smaller one is lost in them. So the largest eigenvalue of a small batch is too large, and a
    learning rate made from it too small.

    Args:
        seen: the eigenvalue found.
        noise: s, 0 or more, in squared units of the eigenvalue.

    Returns:
        `(seen + sqrt(seen^2 - 4 s)) / 2`; NaN where `seen < 2 sqrt(s)`: noise alone reaches so far.

    Raises:
        ValueError: a number is not finite, or `noise` is below 0.
        TypeError: no number.

    The formula is that of a symmetric matrix of independent Gaussian noise (BBP transition), checked by simulation; that the
    noise of a network's curvature is such is an assumption [ours].

    Reference: Granziol, Zohren, Roberts, arXiv 2006.09092 (a batch's Hessian is wider than that of all examples).

    Example:
        >>> denoised_top(10 / 3, 1.0), denoised_top(2.0, 0.0), denoised_top(1.9, 1.0)
        (3.0, 2.0, nan)
    """
    seen, noise = number("seen", seen), non_negative("noise", noise)
    under = seen * seen - 4 * noise
    return (seen + math.sqrt(under)) / 2 if under >= 0 and seen > 0 else math.nan

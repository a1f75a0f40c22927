"""Rounding a tensor to a number format, bit for bit, in the tensor's own dtype."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor

from trimtab.checks import one_of
from trimtab.checks import whole as whole_number
from trimtab.precision.format import Format, named
from trimtab.precision.rounding import Overflow, Rounder, Rounding, arithmetic_dtype
from trimtab.precision.scaling import PerTensor, Scaling, absmax

OverflowPolicy = Literal["saturate", "inf", "nan", "raise"]
CARRIERS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Elements rounded at a time: what stays in a processor's cache (measured), and on a GPU what keeps it busy.
CHUNK_CPU, CHUNK_GPU = 1 << 17, 1 << 22
SCALED_AT_ONCE = 16  # chunks whose scales are computed together: small operations, better few


@torch.no_grad()
def quantize(
    x: Tensor,
    format: str | Format,
    rounding: Rounding = "nearest",
    overflow: OverflowPolicy = "saturate",
    scaling: Scaling | None = None,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
    random_bits: int | None = None,
) -> Tensor:
    """`x` rounded to the numbers of `format`, in the dtype, shape and memory layout of `x`.

    The result is exact: the number that the format's arithmetic would give, held in the wider dtype. NaN stays NaN in every
    format; -0 stays -0 where the format has it. The result carries no gradient; `StraightThrough` does.

    Args:
        x: float64, float32, float16 or bfloat16, on any device; the format must fit into it.
        format: a `Format` or its name (`named`).
        rounding: "nearest" (ties to even), "ties_away", "toward_zero", "up", "down" (towards +-infinity), or "stochastic" (up
            with probability equal to the fraction of the step, so that the mean is x between -max and max; numbers of the
            format stay as they are; scales that let the largest entries saturate, by the rules "floor" (MX's default) and
            "even" and in NVFP4's published form, bias these towards zero, with a warning). Probabilities are within 2^-18
            for formats of up to 4 mantissa bits, else multiples of 2^-25, of 2^-53 for float64.
        overflow: what becomes of numbers that, rounded as if the exponent had no limit, lie above the largest: "saturate"
            gives the largest number with the sign of x, infinite x included; "inf" (only for formats that have it) and
            "nan" give these, but "inf" toward zero gives infinity for infinite x alone and else the largest number, as IEEE
            754-2019, 7.4 has it; "raise" refuses, before anything is written, x that is NaN, infinite, or would overflow (under
            stochastic rounding: might).
        scaling: None, `PerTensor`, `PerChannel`, `Block` or `MX`: the numbers rounded are x divided by a scale per group,
            and the result is multiplied by it. Both operations round to float32 (float64 for float64 tensors, then to the
            dtype of x) unless the scale is a power of two. Under "saturate" a finite product beyond the dtype becomes the
            dtype's largest number. Rules that cannot overflow (absmax, power_of_two) make the policy matter for "raise"
            alone.
        generator: for stochastic rounding; default torch's global one of the device. Numbers are drawn in the order of the
            elements, whatever the memory layout, so a seed gives the same result for every layout. float16 and bfloat16
            draw as float32 does.
        random_bits: of each number that stochastic rounding draws, 1 to 24; probabilities are then multiples of
            2^-random_bits, as in hardware. Default None: as many as the above says.
        out: where to write, of the shape, dtype and device of x; x itself rounds in place. Default: a new tensor.

    Returns:
        The rounded tensor (`out` if given). The peak of memory is at most three times the tensor, x and the result included,
        and the chunks' buffers (1 to 3 MiB on one or two threads of a CPU).

    Raises:
        TypeError: x is no tensor, is complex, integer, 8-bit or sparse.
        ValueError: unknown names, a format that does not fit the dtype, `out` that does not match, or overflow="raise" and
            numbers that it refuses.

    Example:
        >>> quantize(torch.tensor([0.3, -5.2, 100.0]), "e2m1")
        tensor([ 0.5000, -6.0000,  6.0000])
        >>> quantize(torch.tensor([500.0]), "e4m3", overflow="nan")
        tensor([nan])
    """
    format = named(format)
    _check(x, format, rounding, overflow, scaling, out)
    if random_bits is not None:
        whole_number("random_bits", random_bits, 1, 24)
        if rounding != "stochastic":
            raise ValueError(f"random_bits={random_bits} is about stochastic rounding, got rounding={rounding!r}")
    x = x.detach()
    result = torch.empty_like(x) if out is None else out.detach()
    if x.numel() == 0:
        return result if out is None else out
    grouping = scaling or PerTensor()
    whole = None if scaling is None else scaling.of_tensor(x, format)
    if overflow == "raise":
        _refuse(x, format, rounding, scaling, whole)
    if scaling is not None:
        scaling.remember(x, whole)
    policy: Overflow = "saturate"
    if overflow != "raise" and (scaling is None or scaling.overflows):
        policy = overflow
    if _overlap(x, result) and not _same(x, result):
        x = x.clone()
    if rounding == "stochastic" and x.device.type != "cpu":
        x = x.contiguous()  # a GPU's random numbers depend on the size of the chunk, so chunks must not on the layout

    dtype = arithmetic_dtype(format, x.dtype, scaling)
    size = min(_chunk(x.device), max(x.numel(), 1024))
    rounder = Rounder(format, rounding, policy, generator, dtype, x.device, size, count=x.numel(), bits=random_bits)
    if rounder.fused is not None and rounding != "stochastic":
        size = x.numel()  # one kernel that needs no buffers
    for source, target in _pieces(x, result, grouping, size, ordered=rounding == "stochastic"):
        rows = grouping.grouped(source)
        direct = _overlap(rows, source) and rows.is_contiguous() and target.is_contiguous()
        if not direct and _overlap(rows, source):
            rows = rows.clone(memory_format=torch.contiguous_format)
        places = grouping.grouped(target) if direct else rows
        together = max(size // rows.shape[1], 1)
        for first in range(0, rows.shape[0], SCALED_AT_ONCE * together):
            some, where = (each[first : first + SCALED_AT_ONCE * together] for each in (rows, places))
            scales = None if scaling is None else scaling.of_rows(some, format, dtype, whole, generator)
            if scales is not None and x.device.type == "cpu":  # elsewhere asking would wait for the device
                scales = scales._replace(fits=float(scales.decode.amax()) * format.max <= torch.finfo(x.dtype).max)
            for row in range(0, len(some), together):
                one, other = some[row : row + together], where[row : row + together]
                own = None if scales is None else scales.part(row, row + together)
                for start in range(0, rows.shape[1], size):
                    rounder(one[:, start : start + size], other[:, start : start + size], own)
        if not direct:
            target.copy_(grouping.ungrouped(rows, source.shape))
    return result if out is None else out


def _pieces(
    x: Tensor, result: Tensor, grouping: Scaling, size: int, *, ordered: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of x and of the same places in the result, groups unbroken: all at once where no copy is needed, else slabs."""
    # without groups any order will do, that of the memory too, unless random numbers follow it
    alike = type(grouping) is PerTensor and x.stride() == result.stride()
    if alike and (x.is_contiguous() or (not ordered and torch.empty_like(x, device="meta").stride() == x.stride())):
        yield x.as_strided((x.numel(),), (1,)), result.as_strided((x.numel(),), (1,))
        return
    lines, places = grouping.lines(x), grouping.lines(result)
    if lines.is_contiguous() and places.is_contiguous() and not grouping.pads(lines):
        yield lines, places
        return
    step = max(size // (lines.numel() // lines.shape[0]), 1)
    for start in range(0, lines.shape[0], step):
        yield lines[start : start + step], places[start : start + step]


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors may share memory."""
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors lie on the same memory, element by element."""
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride() and one.shape == other.shape


def _chunk(device: torch.device) -> int:
    """Elements at a time; no result on a CPU depends on it, random numbers included."""
    return CHUNK_CPU // 2 * max(torch.get_num_threads(), 2) if device.type == "cpu" else CHUNK_GPU


def _check(
    x: Tensor, format: Format, rounding: str, overflow: str, scaling: Scaling | None, out: Tensor | None
) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor, got {type(x).__name__}")
    if x.dtype not in CARRIERS or x.layout != torch.strided:
        raise TypeError(
            f"x must be a dense tensor of {', '.join(str(each).removeprefix('torch.') for each in CARRIERS)}, "
            f"got {x.dtype}, {x.layout}"
        )
    one_of("rounding", rounding, get_args(Rounding))
    one_of("overflow", overflow, get_args(OverflowPolicy))
    if scaling is not None and not isinstance(scaling, Scaling):
        raise TypeError(f"scaling must be None, PerTensor, PerChannel, Block, MX, NVFP4 or Delayed, got {scaling!r}")
    if scaling is not None:
        scaling.check(format, rounding)
        if rounding == "stochastic" and overflow == "saturate" and scaling.biases:
            warnings.warn(
                f"stochastic rounding is biased under {scaling!r}: the largest entries of a group may saturate, and their mean "
                f"is then not x; {scaling.biases}",
                stacklevel=4,  # quantize's caller; no_grad's wrapper lies between
            )
    if overflow == "inf" and not format.infinities:
        raise ValueError(f"format {format.name!r} has no infinity; overflow may be saturate, nan or raise")
    if not format.fits(x.dtype):
        raise ValueError(f"format {format.name!r} does not fit into {x.dtype}; convert x to a wider dtype first")
    if out is not None and (out.shape != x.shape or out.dtype != x.dtype or out.device != x.device):
        raise ValueError(
            f"out must have the shape, dtype and device of x, {tuple(x.shape)}, {x.dtype}, {x.device}, "
            f"got {tuple(out.shape)}, {out.dtype}, {out.device}"
        )


def _refuse(x: Tensor, format: Format, rounding: Rounding, scaling: Scaling | None, whole: Tensor | None) -> None:
    """ValueError where overflow="raise" says so; looks at the largest magnitude of each group only."""
    grouping = scaling or PerTensor()
    rows = grouping.grouped(grouping.lines(x))
    largest = absmax(rows).to(torch.float64)
    if not bool(largest.isfinite().all()):
        what = "NaN" if bool(largest.isnan().any()) else "an infinity"
        raise ValueError(f"x has {what}, which overflow='raise' refuses for format {format.name!r}")
    if scaling is not None:
        if not scaling.overflows:
            return
        scales = scaling.of_rows(rows, format, torch.float64 if x.dtype == torch.float64 else torch.float32, whole)
        if scales.encode is None:
            largest, rows = largest / scales.decode, rows / scales.decode
        else:
            largest, rows = largest * scales.encode, rows * scales.encode
    step = 2.0 ** (format.max_exponent - format.mantissa)
    if format.exponent == 0:
        step = 1.0
    odd = bool(format.largest_code % 2)
    outward = largest > format.max
    inward = largest >= format.max + step
    above = {
        "nearest": largest >= format.max + step / 2 if odd else largest > format.max + step / 2,
        "ties_away": largest >= format.max + step / 2,
        "toward_zero": inward,
        "up": inward | (rows.amax(1, keepdim=True) > format.max),
        "down": inward | (rows.amin(1, keepdim=True) < -format.max),
        "stochastic": outward,
    }[rounding]
    if bool(above.any()):
        raise ValueError(
            f"x has magnitudes up to {float(largest.max()):g}{' after scaling' if scaling else ''}, above the largest number "
            f"of format {format.name!r}, {format.max:g}, and overflow='raise'"
        )

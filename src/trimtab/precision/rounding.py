"""The arithmetic that rounds one chunk of numbers, with buffers that are used again for the next."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from trimtab.precision.cuda_rounding import CudaRounding
from trimtab.precision.draws import Draws
from trimtab.precision.format import FORMATS, Format
from trimtab.precision.scaling import Scales, Scaling

Rounding = Literal["nearest", "ties_away", "toward_zero", "up", "down", "stochastic"]
Overflow = Literal["saturate", "inf", "nan"]

NATIVE = {FORMATS["fp16"]: torch.float16, FORMATS["bf16"]: torch.bfloat16}
EXPONENT_MASK = {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}
FEW = 4
"""Mantissa bits up to which a number counted in steps and a random part of a step add up exactly enough in float32."""
INTEGER = {torch.float32: torch.int32, torch.float64: torch.int64}
SIGN_MASK = {torch.float32: -(1 << 31), torch.float64: -(1 << 63)}


def arithmetic_dtype(format: Format, carrier: torch.dtype, scaling: Scaling | None = None) -> torch.dtype:
    """float32 for carriers up to float32; float64 for float64, and where the format's binades go below float32's.

    Under `torch.set_flush_denormal(True)` it is float64 too where steps or scales may be subnormal in float32.
    """
    if carrier == torch.float64 or format.min_exponent < -126:
        return torch.float64
    lowest = 0 if scaling is None else scaling.lowest_exponent(torch.float32, format)
    deep = min(format.min_exponent - format.mantissa, lowest) < -126
    return torch.float64 if deep and flushes_subnormals() else torch.float32


def flushes_subnormals() -> bool:
    """Whether `torch.set_flush_denormal(True)` holds in this thread."""
    return torch.tensor(2.0**-127).mul_(1.0).item() == 0.0


class Rounder:
    """Rounds chunks of at most `size` numbers: `target <- decode * round(encode * source)`.

    With q the step of the format at x, `q = 2^(max(floor(log2 |x|), min_exponent) - mantissa)`, the rounded number is
    `q * R(x / q)`; q is a power of two taken from the exponent bits of x, so both operations with it are exact. R is
    torch.round (ties to even; without mantissa bits to the even code), torch.trunc, or `floor(|v|) + [frac |v| > u]` with
    the sign of v and u uniform in [0, 1]; torch.ceil, torch.floor, or `trunc(v +- 1/2)` for ties away from zero.

    Where numbers have few bits, `v + u - 1/2` is rounded to nearest instead of compared, with u a multiple of 2^-19 in effect.

    Few passes over a chunk that stays in the processor's cache are what makes this fast: seven for rounding to nearest.
    Comparisons write 0 and 1 into floating-point buffers; torch's masks are several times slower on a CPU.
    """

    def __init__(
        self,
        format: Format,
        rounding: Rounding,
        overflow: Overflow,
        generator: torch.Generator | None,
        dtype: torch.dtype,
        device: torch.device,
        size: int,
        *,
        count: int = 0,
        bits: int | None = None,
    ) -> None:
        self.format, self.rounding, self.overflow, self.generator = format, rounding, overflow, generator
        self.dtype = dtype
        self.largest = format.max
        self.lowest, self.highest = math.ldexp(1.0, format.min_exponent), math.ldexp(1.0, format.max_exponent)
        if format.exponent == 0:
            self.highest = self.lowest
        native = NATIVE.get(format) if rounding == "nearest" and dtype == torch.float32 and overflow != "nan" else None
        self._device = device
        self._size = size
        self._native_dtype = native
        self._buffers: dict[str, Tensor] = {}
        # as tensors of the same width: torch is slower with Python's numbers
        self._exponent, self._sign = (
            torch.tensor(masks[dtype], dtype=INTEGER[dtype], device=device) for masks in (EXPONENT_MASK, SIGN_MASK)
        )
        self.bits, self.draws = bits, Draws(generator, device, max(count, 1))
        # on a CPU alone, so that the kernel of a GPU and torch's operations there draw alike
        few = dtype == torch.float32 and format.mantissa <= FEW and device.type == "cpu"
        self._adds_up = bits is None and few
        self.fused = (
            CudaRounding.of(format, rounding, overflow, self.lowest, self.highest, device)
            if dtype == torch.float32 and bits is None
            else None
        )

    def _buffer(self, name: str, like: Tensor) -> Tensor:
        if name not in self._buffers or self._buffers[name].numel() < like.numel():
            dtype = self._native_dtype if name == "native" else self.dtype
            self._buffers[name] = torch.empty(max(self._size, like.numel()), dtype=dtype, device=self._device)
        return self._buffers[name][: like.numel()].view(like.shape)

    def __call__(self, source: Tensor, target: Tensor, scales: Scales | None = None) -> None:
        """Round `source` into `target` (same shape, contiguous; may be the same); the scales broadcast to the shape."""
        encode, decode = (None, None) if scales is None else (scales.encode, scales.decode)
        if self.fused is not None and self.fused.takes(source, target, encode, decode):
            uniform = self._uniform(source) if self.rounding == "stochastic" else None
            self.fused(source, target, encode, decode, uniform)
            return
        x = source
        if x.dtype != self.dtype:
            x = self._buffer("x", source).copy_(source)
        if scales is not None:
            scaled = self._buffer("x", source)
            if scales.encode is None:
                x = torch.div(x, scales.decode, out=scaled)
            else:
                x = torch.mul(x, scales.encode, out=scaled)
        # straight into the target where nothing in it is needed any more
        direct = target.dtype == self.dtype and target.data_ptr() != x.data_ptr()
        value = target if direct else self._buffer("value", x)
        if self._native_dtype is not None:
            self._native(x, value, self._buffer("native", x))
        else:
            self._round(x, value, self._buffer("step", x))
        if scales is not None:
            value.mul_(scales.decode)
            if self.overflow == "saturate" and not scales.fits:
                limit = torch.finfo(target.dtype).max
                value.clamp_(-limit, limit)
        if not direct:
            target.copy_(value)

    def _native(self, x: Tensor, value: Tensor, cast: Tensor) -> None:
        """Formats that torch converts to in hardware."""
        if self.overflow == "saturate":
            x = torch.clamp(x, -self.largest, self.largest, out=value)
        value.copy_(cast.copy_(x))

    def _round(self, x: Tensor, value: Tensor, step: Tensor) -> None:
        bits, steps = x.view(INTEGER[self.dtype]), step.view(INTEGER[self.dtype])
        torch.bitwise_and(bits, self._exponent, out=steps)
        step.clamp_(self.lowest, self.highest)
        adds_up = self.rounding == "stochastic" and self._adds_up
        finer = 0 if adds_up else -self.format.mantissa
        if finer:
            step.mul_(math.ldexp(1.0, finer))
        if not self.format.subnormals:
            below = torch.abs(x, out=value).lt_(self.lowest)
            wanted = math.ldexp(self.lowest, self.format.mantissa + finer)
            step.add_(below, alpha=wanted - math.ldexp(self.lowest, finer))
        if adds_up:
            self._stochastic_sum(x, bits, value, step, steps)
        else:
            self._whole_steps(x, value, step)
        if self.overflow == "saturate":
            value.clamp_(-self.largest, self.largest)
        elif self.overflow == "inf" and self.rounding in ("toward_zero", "up", "down"):
            # finite numbers become infinite only in the direction of the rounding
            low = None if self.rounding == "down" else -self.largest
            high = None if self.rounding == "up" else self.largest
            value.clamp_(low, high)
            beyond = torch.isinf(x) | (value.abs() > self.largest)
            torch.where(beyond, torch.copysign(value.new_full((), math.inf), x), value, out=value)
        else:
            within = torch.abs(value, out=step).le_(self.largest)
            if self.overflow == "nan":
                value.mul_(within.div_(within))  # 0 / 0
            else:
                value.div_(within)
        if not self.format.signed_zero:
            value.add_(0.0)

    def _whole_steps(self, x: Tensor, value: Tensor, step: Tensor) -> None:
        torch.div(x, step, out=value)
        if self.rounding == "nearest":
            if self.format.mantissa == 0:
                self._ties_to_even_codes(value, step)
            value.round_()
        elif self.rounding == "toward_zero":
            value.trunc_()
        elif self.rounding == "up":
            value.ceil_()
        elif self.rounding == "down":
            value.floor_()
        elif self.rounding == "ties_away":
            half = 0.5 - torch.finfo(self.dtype).eps / 4  # 1/2 itself may round a sum up once too often
            value.add_(torch.copysign(value.new_full((), half), value)).trunc_()
        else:
            self._stochastic(value)
        value.mul_(step)
        if self.rounding == "stochastic":
            torch.copysign(value, x, out=value)

    def _ties_to_even_codes(self, value: Tensor, step: Tensor) -> None:
        """Without mantissa bits 1.5 steps lie between the codes of 1 and 2: made 1 where the first is even."""
        digits = 52 if self.dtype == torch.float64 else 23
        exponent = step.view(INTEGER[self.dtype]).bitwise_right_shift(digits) - (1023 if digits == 52 else 127)
        assert self.format.bias is not None
        even = (exponent + self.format.bias).bitwise_and_(1) == 0
        value.mul_(torch.where(even & (value.abs() == 1.5), 2 / 3, 1.0))

    def _stochastic_sum(self, x: Tensor, bits: Tensor, value: Tensor, step: Tensor, steps: Tensor) -> None:
        """A random part of a step added, then rounded to nearest by a number too large to keep parts of steps.

        `step` is that of the leading digit, 2^mantissa of the format's, and gets the sign of x: quotients are positive, a sum
        that cancels is +0, and the product has the sign of x, zeros too. A number below 2^(FEW + 1) steps and one from
        -(1/2 - 2^-19) to 1/2 - 2^-19 of them add up without rounding to a tie.
        """
        words = self._words(value)
        steps.bitwise_or_(torch.bitwise_and(bits, self._sign, out=value.view(steps.dtype)))
        torch.div(x, step, out=value)
        value.add_(words, alpha=math.ldexp(1 - 2.0**-17, -32 - self.format.mantissa))
        large = math.ldexp(1.5, 23 - self.format.mantissa)
        value.add_(large).sub_(large).mul_(step)

    def _stochastic(self, value: Tensor) -> None:
        """Down to a whole number, then up with the probability of the part cut off; zeros have any sign."""
        uniform = self._uniform(value)
        whole = torch.floor(value.abs_(), out=self._buffer("whole", value))
        value.sub_(whole)
        (value.gt_(uniform) if self.bits is None else value.ge_(uniform)).add_(whole)

    def _words(self, like: Tensor) -> Tensor:
        """Whole numbers from -2^31 to 2^31, in floating point."""
        return self._buffer("uniform", like).copy_(self.draws.take(like.numel()).view(like.shape))

    def _uniform(self, like: Tensor) -> Tensor:
        """Uniform numbers from 0 to 1, drawn in the order of the elements: multiples of 2^-25 (float32) or 2^-53.

        With a number of random bits: the middles of 2^bits intervals.
        """
        if self.dtype == torch.float64 and self.bits is None:
            return self._buffer("uniform", like).uniform_(generator=self.generator)
        if self.bits is None:
            return self._words(like).mul_(2.0**-32).add_(0.5)
        words = self.draws.take(like.numel()).view(like.shape) >> (32 - self.bits)
        return self._buffer("uniform", like).copy_(words).add_(0.5).mul_(2.0**-self.bits).add_(0.5)

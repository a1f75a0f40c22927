"""Inputs on which formats are held against other implementations."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from trimtab.precision import Format


def all_bf16() -> Tensor:
    """Each of the 65,536 patterns of bfloat16, as float32."""
    return torch.arange(65536).to(torch.int16).view(torch.bfloat16).float()


@functools.cache
def random_bits(count: int = 1_000_000) -> Tensor:
    """float32 of random bits: every magnitude from subnormal to the largest, infinities, NaN."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-(2**31), 2**31, (count,), generator=generator).to(torch.int32).view(torch.float32)


def hard_cases(format: Format) -> Tensor:
    """Numbers of the format, the ties between them, their float32 neighbours, the ends of the range; both signs."""
    values = format.values() if format.bits <= 8 else format.values()[:: 2 ** max(format.bits - 10, 0)]
    values = values.float()
    ties = (values[1:] + values[:-1]) / 2
    top = torch.tensor([format.max, format.max + (values[-1] - values[-2]) / 2, 2 * format.max], dtype=torch.float64)
    tiny = torch.tensor([0.0, 2.0**-149, 2.0**-127, 2.0**-126, torch.inf, 3.4028235e38])
    cases = torch.cat([values, ties, top.float(), tiny])
    cases = torch.cat([cases, cases.nextafter(torch.tensor(torch.inf)), cases.nextafter(torch.tensor(0.0))])
    return torch.cat([cases, -cases, torch.tensor([torch.nan])])


def same(one: Tensor, other: Tensor) -> Tensor:
    """Elementwise: equal in every bit (so -0 is not 0), or both NaN."""
    integer = {8: torch.int64, 4: torch.int32, 2: torch.int16}[one.element_size()]
    return (one.view(integer) == other.view(integer)) | (one.isnan() & other.isnan())

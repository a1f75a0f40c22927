"""Order statistics on an NVIDIA GPU: three digits of 11, 11 and 10 bits, each counted by one reading of all tensors."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.tensors.cuda_kernels import THREADS, Kernel, kernel
from trimtab.tensors.passes import flat_view

CHUNK = 1 << 16
"""Entries that a block counts before it takes the next [ours]."""
BLOCKS = 132 * 8
DIGITS = ((21, 11), (10, 11), (0, 10))
"""Shift and bits of each digit, the leading one first."""
AT_ONCE = 5
"""Prefixes whose histograms fit the memory that a block shares."""

SOURCE = r"""
extern "C" __global__ void count_digits(
    const long long* chunks, int number, int absolute, int known, int shift, int bins, const int* prefixes, int wanted,
    unsigned* counts) {
  extern __shared__ unsigned own[];
  for (int at = threadIdx.x; at < wanted * bins; at += blockDim.x) own[at] = 0;
  __syncthreads();
  bool nan = false;
  for (int chunk = blockIdx.x; chunk < number; chunk += gridDim.x) {
    const unsigned* data = (const unsigned*)chunks[2 * chunk];
    const int length = (int)chunks[2 * chunk + 1];
    for (int at = threadIdx.x; at < length; at += blockDim.x) {
      unsigned bits = data[at];
      nan |= (bits & 0x7FFFFFFFu) > 0x7F800000u;
      if (absolute || bits == 0x80000000u) bits &= 0x7FFFFFFFu;
      const unsigned key = absolute ? bits : bits & 0x80000000u ? ~bits : bits | 0x80000000u;
      const unsigned digit = (key >> shift) & (bins - 1);
      for (int one = 0; one < wanted; one++)
        if (known == 32 || (key >> known) == (unsigned)prefixes[one]) atomicAdd(own + one * bins + digit, 1u);
    }
  }
  if (nan) counts[wanted * bins] = 1;
  __syncthreads();
  for (int at = threadIdx.x; at < wanted * bins; at += blockDim.x)
    if (own[at]) atomicAdd(counts + at, own[at]);
}
"""


def order_statistics(
    scores: Sequence[Tensor], counts: Sequence[int], *, absolute: bool
) -> list[tuple[float, int]] | None:
    """Of each count the score of that rank (from 1) and how many are smaller; exact.

    Args:
        scores: tensors of any shape.
        counts: from 1 to the number of scores.
        absolute: of the magnitudes.

    Returns:
        None where torch's operations must find them: other dtypes, layouts with gaps, several devices, no kernel, NaN.
    """
    flats = [flat_view(score) for score in scores if score.numel()]
    if not flats or any(flat.dtype != torch.float32 or flat.ndim != 1 for flat in flats):
        return None
    device = flats[0].device
    if any(flat.device != device for flat in flats):
        return None
    run = kernel(SOURCE, "count_digits", device)
    return None if run is None else _found(run, flats, sorted(set(counts)), counts, absolute=absolute)


def chunk_table(flats: Sequence[Tensor]) -> Tensor:
    """Address and number of entries of each chunk, shape (chunks, 2), int64, on the CPU."""
    rows = []
    for flat in flats:
        starts = torch.arange(0, flat.numel(), CHUNK)
        rows.append(torch.stack([starts * 4 + flat.data_ptr(), (flat.numel() - starts).clamp(max=CHUNK)], 1))
    return torch.cat(rows)


def _found(
    run: Kernel, flats: Sequence[Tensor], ranks: Sequence[int], counts: Sequence[int], *, absolute: bool
) -> list[tuple[float, int]] | None:
    device = flats[0].device
    table = chunk_table(flats)
    chunks = table.to(device)
    prefix, below, known = dict.fromkeys(ranks, 0), dict.fromkeys(ranks, 0), 32
    for shift, bits in DIGITS:
        bins, distinct = 1 << bits, sorted(set(prefix.values()))
        histograms: dict[int, Tensor] = {}
        for first in range(0, len(distinct), AT_ONCE):
            some = distinct[first : first + AT_ONCE]
            found = torch.zeros(len(some) * bins + 1, dtype=torch.int32, device=device)
            wanted = torch.tensor(some, dtype=torch.int32, device=device)
            run(
                THREADS * min(len(table), BLOCKS),
                [chunks, len(table), int(absolute), known, shift, bins, wanted, len(some), found],
                shared=4 * len(some) * bins,
            )
            whole = found.cpu().to(torch.int64).bitwise_and_(0xFFFFFFFF)
            if whole[-1]:
                return None  # NaN, which is named elsewhere
            histograms |= dict(zip(some, whole[:-1].view(len(some), bins), strict=True))
        for rank in ranks:
            histogram = histograms[prefix[rank]]
            cumulative = histogram.cumsum(0)
            digit = int(torch.searchsorted(cumulative, rank - below[rank]))
            below[rank] += int(cumulative[digit] - histogram[digit])
            prefix[rank] = prefix[rank] << bits | digit
        known = shift
    return [(_number(prefix[count], absolute=absolute), below[count]) for count in counts]


def _number(key: int, *, absolute: bool) -> float:
    """The score that has this key."""
    bits = key if absolute else key ^ 0x80000000 if key & 0x80000000 else ~key & 0xFFFFFFFF
    number: float = struct.unpack("<f", struct.pack("<I", bits))[0]
    return number

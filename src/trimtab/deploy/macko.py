"""The MACKO format: a matrix as its non-zeros and four bits each for how far apart they lie; encoder and decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.parameters.kinds import REAL

STEP = 16
"""Columns that four bits reach."""
ALIGNED = 8
"""Entries that the kernel reads at once: values are padded with zeros to a multiple of it."""
LARGEST = 2**31


@dataclass(frozen=True)
class Macko:
    """A matrix (rows, columns) in the MACKO format.

    Attributes:
        values: float16, the non-zeros row after row, with the zeros that bridge wide gaps; padded to a multiple of 8.
        deltas: uint8, two entries each, the first in the low four bits: how many columns were skipped since the entry before
            (at the beginning of a row since its left end).
        row_ends: int32 (rows + 1,): entries before each row, and in all.
        rows, columns: the shape.
    """

    values: Tensor
    deltas: Tensor
    row_ends: Tensor
    rows: int
    columns: int

    @property
    def entries(self) -> int:
        """Entries without those that only fill the end."""
        return int(self.row_ends[-1])

    @property
    def bytes(self) -> int:
        """Of the three arrays."""
        return sum(part.numel() * part.element_size() for part in (self.values, self.deltas, self.row_ends))


def macko_encode(matrix: Tensor) -> Macko:
    """Encode a matrix; values are rounded to float16 first, and what is zero then counts as zero.

    Walking a row from the left, an entry is written for each non-zero and, after 15 columns without one, for the zero at the
    16th: so a gap of g columns takes g // 16 entries of value 0 and delta 15, and the entry after it has the delta g % 16.

    Args:
        matrix: (rows, columns) of any real dtype.

    Raises:
        TypeError: not a matrix of real numbers.
        ValueError: a value beyond float16 (65,504), or more entries than 32 bits count.

    Reference:
        Macko, Boža: MACKO: Sparse Matrix-Vector Multiplication for Low Sparsity, arXiv 2511.13061; arrays
        as its library has them.

    Example:
        >>> packed = macko_encode(torch.tensor([[0.0, 0.0, 3.0, 4.0], [0.0, 5.0, 0.0, 0.0]]))
        >>> packed.values.tolist()[:3], packed.deltas.tolist()[:2], packed.row_ends.tolist()  # deltas 2, 0 and 1
        ([3.0, 4.0, 5.0], [2, 1], [0, 2, 3])
    """
    if matrix.ndim != 2 or matrix.dtype not in REAL:
        raise TypeError(f"MACKO holds a matrix of real numbers, got {matrix.dtype} of shape {tuple(matrix.shape)}")
    half = matrix.detach().cpu().to(torch.float16)
    if bool(half.isinf().any()) and not bool(matrix.isinf().any()):
        raise ValueError(
            f"a value of {float(matrix.abs().max()):.4g} is beyond float16, which MACKO holds (65,504 at most)"
        )
    rows, columns = half.shape
    row, column = (index.numpy() for index in torch.nonzero(half, as_tuple=True))
    counts = np.bincount(row, minlength=rows)
    first = np.concatenate([[0], np.cumsum(counts)])  # of each row's non-zeros
    before = np.concatenate([[-1], column[:-1]]) if column.size else column
    starts = first[:-1][counts > 0]
    before[starts] = -1
    gaps = column - before - 1
    last = np.full(rows, -1)
    last[counts > 0] = column[first[1:][counts > 0] - 1]
    behind = (columns - last - 1) // STEP  # zeros written behind the last non-zero
    taken = gaps // STEP + 1
    of_row = np.bincount(row, weights=taken, minlength=rows).astype(np.int64) + behind
    row_ends = np.concatenate([[0], np.cumsum(of_row)])
    total = int(row_ends[-1])
    if total >= LARGEST:
        raise ValueError(f"a matrix {rows} x {columns} takes {total:,} entries, more than 32 bits count")
    inside = np.cumsum(taken)
    inside -= np.repeat(np.concatenate([[0], inside])[first[:-1]], counts)  # entries since the row's beginning
    places = row_ends[:-1][row] + inside - 1
    padded = -(-total // ALIGNED) * ALIGNED
    deltas = np.zeros(padded, dtype=np.uint8)
    deltas[:total] = STEP - 1
    deltas[places] = gaps % STEP
    values = torch.zeros(padded, dtype=torch.float16)
    values[torch.from_numpy(places)] = half[torch.from_numpy(row), torch.from_numpy(column)]
    return Macko(
        values,
        torch.from_numpy(deltas[::2] | deltas[1::2] << 4),
        torch.from_numpy(row_ends.astype(np.int32)),
        rows,
        columns,
    )


def macko_decode(packed: Macko) -> Tensor:
    """The matrix in float16, the reference for any kernel: an entry's column is `sum of (delta + 1) - 1` over its row so far.

    Raises:
        ValueError: arrays that do not fit each other, or an entry beyond the last column.

    Example:
        >>> matrix = torch.tensor([[0.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
        >>> torch.equal(macko_decode(macko_encode(matrix)), matrix.half())
        True
    """
    ends: NDArray[Any] = packed.row_ends.numpy().astype(np.int64)
    total = int(ends[-1]) if ends.size else -1
    if ends.size != packed.rows + 1 or ends[0] != 0 or bool((np.diff(ends) < 0).any()):
        raise ValueError(f"row ends must rise from 0 over {packed.rows + 1} numbers")
    if packed.values.numel() < total or packed.deltas.numel() * 2 < total:
        raise ValueError(f"{total} entries need as many values and half as many bytes of deltas")
    nibbles = packed.deltas.numpy()
    deltas = np.stack([nibbles & 15, nibbles >> 4], axis=1).reshape(-1)[:total].astype(np.int64)
    walked = np.cumsum(deltas + 1)
    before = np.concatenate([[0], walked])[ends[:-1]]
    counts = np.diff(ends)
    columns = walked - np.repeat(before, counts) - 1
    if bool((columns >= packed.columns).any()):
        raise ValueError(f"an entry lies beyond the last of {packed.columns} columns")
    found = torch.zeros(packed.rows, packed.columns, dtype=torch.float16)
    rows = np.repeat(np.arange(packed.rows), counts)
    found[torch.from_numpy(rows), torch.from_numpy(columns)] = packed.values[:total]
    return found

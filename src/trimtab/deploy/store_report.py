"""What a sparse file weighs, tensor by tensor, against the dense file, gzip and the entropy bound."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from trimtab.frames import Tabular

Form = Literal["dense", "bitmask", "gap code", "alias"]


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the file. Bytes are of the tensor alone, without its share of the index.

    Attributes:
        name: key in the state dict.
        dtype: for instance `float32`.
        shape: as in the state dict.
        nonzeros: elements whose bits are not all zero (-0.0 counts as a non-zero: its bits must survive).
        form: `dense`, `bitmask`, `gap code`, or `alias` of a tensor that is stored already.
        dense_bytes: elements times bytes per element; 0 for an alias.
        sparse_bytes: bytes of values and positions as stored.
        bound_bytes: `(n H(nonzeros / n)) / 8 + nonzeros * itemsize`, H the binary entropy in bits.
        negative_zeros: how many of the stored non-zeros are -0.0.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nonzeros: int
    form: Form
    dense_bytes: int
    sparse_bytes: int
    bound_bytes: float
    negative_zeros: int = 0


@dataclass(frozen=True)
class StoreReport(Tabular):
    """Size of a sparse file beside what else could have been written.

    Attributes:
        path: the file.
        sparse_bytes: its size.
        dense_bytes: size of a plain safetensors file of the same tensors (tied ones once).
        bound_bytes: mask entropy of every tensor plus its kept values; no header.
        gzip_bytes: gzip (level 6) of the dense values, or None when it was not asked for.
        sha256: hash of the content, as written into the metadata.
        rows: one per key of the state dict.
    """

    path: Path
    sparse_bytes: int
    dense_bytes: int
    bound_bytes: int
    gzip_bytes: int | None
    sha256: str
    rows: tuple[TensorRow, ...]

    @property
    def ratio(self) -> float:
        """Dense bytes over sparse bytes: how many times smaller the file is."""
        return self.dense_bytes / self.sparse_bytes

    @property
    def of_bound(self) -> float:
        """Bound over sparse bytes: 1 is as small as independent masks and raw values can be."""
        return self.bound_bytes / self.sparse_bytes

    @property
    def negative_zeros(self) -> int:
        """Stored elements that are -0.0: multiplying a negative weight by a mask of zeros leaves them behind."""
        return sum(row.negative_zeros for row in self.rows)

    def records(self) -> list[dict[str, Any]]:
        """One per tensor, with the fields of `TensorRow`."""
        return [asdict(row) for row in self.rows]

    def _title(self) -> str:
        return str(self)

    def __str__(self) -> str:
        forms = [row.form for row in self.rows]
        parts = ", ".join(f"{forms.count(form)} {form}" for form in dict.fromkeys(forms))
        zeros = self.negative_zeros
        advice = f"; {zeros:,} of the values are -0.0, see drop_negative_zeros" if zeros else ""
        return (
            f"{self.path.name}: {self.sparse_bytes:,} bytes, {self.ratio:.2f} times smaller than dense "
            f"({self.dense_bytes:,}), {self.of_bound:.3f} of the entropy bound; tensors: {parts or 'none'}{advice}"
        )


def mask_entropy_bits(elements: int, nonzeros: int) -> float:
    """`n H(p)` with `H(p) = -p log2 p - (1 - p) log2 (1 - p)` and `p = nonzeros / n`, in bits.

    Example:
        >>> mask_entropy_bits(100, 50), mask_entropy_bits(100, 0)
        (100.0, 0.0)
    """
    zeros = elements - nonzeros
    if nonzeros == 0 or zeros == 0:
        return 0.0
    return -nonzeros * math.log2(nonzeros / elements) - zeros * math.log2(zeros / elements)


def dense_file_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...], int]]) -> int:
    """Size of a safetensors file without metadata.

    Args:
        tensors: name -> (dtype as safetensors writes it, shape, bytes), in the order of the data: descending item
            size, then name.
    """
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for name, (dtype, shape, size) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    length = len(json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode())
    return 8 + (length + 7) // 8 * 8 + offset

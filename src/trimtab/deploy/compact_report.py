"""What a compact file weighs, weight by weight, against the dense file and the entropy of what it codes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from trimtab.frames import Tabular


@dataclass(frozen=True)
class CompactRow:
    """One coded weight.

    Attributes:
        name: key in the state dict.
        dtype: for instance `float32`.
        shape: as in the state dict.
        bits: of its numbers, the sign included.
        sparsity: fraction of zeros after rounding.
        code_bytes: its part of the entropy code, the table before packing included; scales are apart.
        entropy_bytes: `n H / 8`, H the order-0 entropy of its numbers in bits.
        scale_bytes: two for each scale, before packing.
        squared_error: sum of squares of what was lost, over that of the weight.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bits: int
    sparsity: float
    code_bytes: float
    entropy_bytes: float
    scale_bytes: int
    squared_error: float


@dataclass(frozen=True)
class CompactReport(Tabular):
    """Size of a compact file beside what else could have been written.

    Attributes:
        path: the file.
        compact_bytes: its size.
        dense_bytes: size of a plain safetensors file of the same tensors as they were (tied ones once).
        code_bytes: all of the entropy code as written: states, words, low bits, tables.
        entropy_bytes: sum over the weights of `n H / 8`, the order-0 entropy of their numbers.
        rest_bytes: scales and tensors that are kept whole, packed.
        overhead_bytes: header, index of names and shapes, hash, the user's metadata.
        quality_before: what `quality` gave for the network as it was; None when it was not asked for.
        quality_after: the same for the network in the file.
        sha256: hash of the content, as written into the metadata.
        rows: one for each coded weight.
        left_out: tensor kept whole -> why.
    """

    path: Path
    compact_bytes: int
    dense_bytes: int
    code_bytes: int
    entropy_bytes: float
    rest_bytes: int
    overhead_bytes: int
    quality_before: float | None
    quality_after: float | None
    sha256: str
    rows: tuple[CompactRow, ...]
    left_out: dict[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """Dense bytes over compact bytes: how many times smaller the file is."""
        return self.dense_bytes / self.compact_bytes

    @property
    def of_entropy(self) -> float:
        """Bytes of the code over the order-0 entropy of the numbers: 1 is as small as fixed odds for each weight can be."""
        return self.code_bytes / self.entropy_bytes if self.entropy_bytes else 1.0

    def records(self) -> list[dict[str, Any]]:
        """One per coded weight, with the fields of `CompactRow`."""
        return [asdict(row) for row in self.rows]

    def _title(self) -> str:
        return str(self)

    def __str__(self) -> str:
        bits = sorted({row.bits for row in self.rows})
        shown = f"{bits[0]} to {bits[-1]}" if len(bits) > 1 else f"{bits[0]}"
        quality = ""
        if self.quality_before is not None and self.quality_after is not None:
            quality = f"; quality {self.quality_after:.4g} of {self.quality_before:.4g}"
        return (
            f"{self.path.name}: {self.compact_bytes:,} bytes of {self.dense_bytes:,}, {self.ratio:.1f} times smaller, "
            f"{shown} bits, {self.of_entropy:.3f} of the entropy{quality}"
        )

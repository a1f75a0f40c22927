"""What a tracker counts and sums of many tensors, each read from memory once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from trimtab.tensors.chunks import Batch, Chunks, RowSums

KEPT = 1 << 22
"""Elements up to which the copies of all small tensors are kept (16 MiB), so that `below` need not copy again [ours]."""
COLUMNS = (
    "total", "squares", "max_abs", "zeros", "nan", "inf", "subnormal", "magnitude_total", "magnitude_squares",
)  # fmt: skip
"""What `Sums` finds of each tensor; `squares` are squared deviations from the mean, as in `trimtab.tensors.moments`."""
PLACE = {name: place for place, name in enumerate(COLUMNS)}


class Sums:
    """Sums and counts of flat tensors of the given sizes, and the buffers that their copies go to.

    Args:
        sizes, dtype, device, looks: as of `trimtab.tensors.chunks.Chunks`.

    Example:
        >>> found = Sums([2, 3])([torch.tensor([1.0, 3.0]), torch.tensor([0.0, -4.0, 1.0])], {"zeros", "max_abs"})
        >>> found[:, PLACE["total"]].tolist(), found[:, PLACE["max_abs"]].tolist(), found[:, PLACE["zeros"]].tolist()
        ([4.0, -3.0], [3.0, 4.0], [0.0, 1.0])
    """

    def __init__(
        self,
        sizes: Sequence[int],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        looks: bool | None = None,
    ) -> None:
        self.chunks = chunks = Chunks(sizes, dtype, device, looks=looks)
        self._work, shared = chunks.buffer(), chunks.buffer()
        copied = [len(batch.parts) > 1 for batch in chunks.batches]
        keeps = sum(batch.number for batch, is_copied in zip(chunks.batches, copied, strict=True) if is_copied)
        self._kept = [is_copied and keeps * chunks.length <= KEPT for is_copied in copied]
        self._copies = [
            chunks.buffer(batch.number) if kept else shared[: batch.number]
            for batch, kept in zip(chunks.batches, self._kept, strict=True)
        ]
        self._magnitudes = False
        """Whether the kept copies are the magnitudes of the tensors of the last call."""

    def __call__(self, flats: Sequence[Tensor], wanted: set[str], smallest_normal: float = 0.0) -> Tensor:
        """What `COLUMNS` says of each tensor, shape (tensors, columns), float64; columns that are not wanted hold 0.

        Args:
            flats: one-dimensional tensors of the sizes given, of any real dtype.
            wanted: column names; "total" and "squares" are always found, one of the magnitudes' brings both.
            smallest_normal: values below it in magnitude, zeros apart, are counted as subnormal.
        """
        chunks = self.chunks
        self._magnitudes = bool(wanted - {"total", "squares"})
        plain, of_magnitudes = RowSums(chunks, centred=False), None
        if "magnitude_squares" in wanted:
            of_magnitudes = RowSums(chunks, centred=True)
        # on a CPU inf and NaN are looked for only where a sum is not finite
        counts = (wanted | ({"zeros"} if "subnormal" in wanted else set())) & set(COLUMNS[2 : 5 if chunks.looks else 7])
        counts |= wanted & {"subnormal"}
        counted = {name: torch.empty(chunks.rows, dtype=chunks.dtype, device=chunks.device) for name in counts}
        for batch, copy in zip(chunks.batches, self._copies, strict=True):
            values = chunks.gather(batch, flats, copy)
            plain.add(values, batch)
            if self._magnitudes:
                magnitudes = torch.abs(values, out=copy)
                if of_magnitudes is not None:
                    of_magnitudes.add(magnitudes, batch)
                self._count(counted, magnitudes, batch, smallest_normal)
        found = torch.zeros(len(COLUMNS), len(chunks.elements), dtype=torch.float64, device=chunks.device)
        found[:2] = chunks.joined(plain.found(), flats)
        if of_magnitudes is not None:
            found[-2:] = chunks.joined(of_magnitudes.found(), flats, _magnitude, centred=True)
        for name, values in counted.items():
            found[PLACE[name]] = chunks.in_order(chunks.over_rows(values, "max" if name == "max_abs" else "sum"))
        found[PLACE["zeros"]] -= chunks.padding
        found[PLACE["subnormal"]] -= chunks.padding + found[PLACE["zeros"]]
        for name in ("zeros", "subnormal"):
            if name not in wanted:
                found[PLACE[name]] = 0
        if chunks.looks and wanted & {"nan", "inf"}:
            for tensor in found[0].isfinite().logical_not_().nonzero().flatten().tolist():
                found[PLACE["nan"], tensor] = flats[tensor].isnan().sum()
                found[PLACE["inf"], tensor] = flats[tensor].isinf().sum()
        return found.T

    def _count(self, counted: dict[str, Tensor], magnitudes: Tensor, batch: Batch, smallest_normal: float) -> None:
        """Write each row's maximum and counts; those below the smallest normal number with the zeros among them."""
        work, out = self._work[: batch.number], {name: values[batch.rows] for name, values in counted.items()}
        if "max_abs" in out:
            torch.amax(magnitudes, 1, out=out["max_abs"])
        if "zeros" in out:
            torch.sum(torch.eq(magnitudes, 0, out=work), 1, out=out["zeros"])
        if "subnormal" in out:
            torch.sum(torch.lt(magnitudes, smallest_normal, out=work), 1, out=out["subnormal"])
        if "nan" in out:
            torch.sum(torch.ne(magnitudes, magnitudes, out=work), 1, out=out["nan"])
        if "inf" in out:
            torch.sum(torch.eq(magnitudes, float("inf"), out=work), 1, out=out["inf"])

    def below(self, flats: Sequence[Tensor], limits: Tensor) -> Tensor:
        """How many magnitudes of each tensor are below its limit, which is positive or NaN (then NaN); shape (tensors,).

        Follows a call with the same tensors.
        """
        chunks = self.chunks
        kept = torch.empty(chunks.rows, dtype=chunks.dtype, device=chunks.device)
        of_row = chunks.column(limits)
        for batch, copy, is_kept in zip(chunks.batches, self._copies, self._kept, strict=True):
            if not (is_kept and self._magnitudes):
                torch.abs(chunks.gather(batch, flats, copy), out=copy)
            work = self._work[: batch.number]
            torch.sum(torch.lt(copy, of_row[batch.rows], out=work), 1, out=kept[batch.rows])
        return chunks.in_order(chunks.over_rows(kept)) - chunks.padding + 0 * limits


def _magnitude(values: Tensor, out: Tensor) -> Tensor:
    return torch.abs(values, out=out)

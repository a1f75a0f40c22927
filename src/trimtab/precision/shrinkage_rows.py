"""What a ShrinkageMeter has measured, from the device to its table."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.checks import whole
from trimtab.precision.shrinkage import Shrinkage, shrinkage
from trimtab.tables.recorder import Recorder, fetch
from trimtab.tables.rows import GLOBAL, Rows

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "shrinkage.parquet"
COLUMNS = ("step", "layer", "kind", *Shrinkage._fields)
COUNTS = ("n", "nan", "inf")
OUTPUTS = "fprop"
"""The kind of what layers put out, of which the loss's gradient is known."""


class ShrinkageRows(Rows):
    """Sums of layers, with a buffer for each kind of tensor and list of layers.

    Args:
        capacity: measured steps that a buffer holds.
        folder, seconds, overwrite: see `Rows`.
    """

    def __init__(self, capacity: int, folder: Path | str | None, seconds: float, *, overwrite: bool) -> None:
        super().__init__(folder, (FOLDER,), seconds, overwrite=overwrite)
        self.capacity = whole("capacity", capacity, 1)
        self.recorders: dict[tuple[str, tuple[str, ...]], Recorder] = {}

    def add(self, step: int, kind: str, layers: Sequence[str], sums: Tensor) -> None:
        """Keep the sums of one step and kind, shape (layers, sums)."""
        key = (kind, tuple(layers))
        recorder = self.recorders.setdefault(key, Recorder(self.capacity))
        if not recorder.fits(sums.shape, sums.device):
            self.flush()
            recorder = self.recorders.setdefault(key, Recorder(self.capacity))
        recorder.slot(sums.shape, sums.device).copy_(sums)
        recorder.commit(step)

    def schemas(self) -> Sequence[pa.Schema]:
        """Of the one table."""
        import pyarrow as pa

        types = {"layer": pa.string(), "kind": pa.string()} | {name: pa.int64() for name in ("step", *COUNTS)}
        return (pa.schema([(name, types.get(name, pa.float64())) for name in COLUMNS]),)

    @property
    def buffers(self) -> Collection[Recorder]:
        """One for each kind of tensor and list of layers."""
        return self.recorders.values()

    def collect(self) -> Sequence[pa.Table]:
        """The new rows, by step; those of one kind at one step stay in the layers' order."""
        import pyarrow as pa
        import pyarrow.compute as pc

        recorders, self.recorders = self.recorders, {}
        rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for (kind, names), (steps, sums) in zip(recorders, fetch(list(recorders.values())), strict=True):
            found = shrinkage(torch.cat([sums, sums.sum(1, keepdim=True)], 1))
            rows["step"] += [step for step in steps for _ in range(len(names) + 1)]
            rows["layer"] += [*names, GLOBAL] * len(steps)
            rows["kind"] += [kind] * (len(names) + 1) * len(steps)
            for field, values in found._asdict().items():
                flat = values.flatten()
                numbers = (flat.long() if field in COUNTS else flat).tolist()
                if field == "oscillating":  # null where it was not looked at
                    numbers = [None if math.isnan(each) else each for each in numbers]
                if field == "loss_gap" and kind != OUTPUTS:
                    numbers = [None] * len(numbers)
                rows[field] += numbers
        table = pa.table(rows, schema=self.schemas()[0])
        order = pa.table({"step": table["step"], "place": pa.array(range(table.num_rows))})
        return (table.take(pc.sort_indices(order, [("step", "ascending"), ("place", "ascending")])),)

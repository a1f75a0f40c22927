"""ShrinkageMeter: what rounding did to every layer, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from trimtab.collectives import is_distributed
from trimtab.parts import Parts
from trimtab.precision.format import Format, named
from trimtab.precision.scaling import Scaling
from trimtab.precision.shrinkage import Measured, Shrinkage, shrinkage, shrinkage_sums
from trimtab.recorder import Recorder, fetch

if TYPE_CHECKING:
    import pyarrow as pa

GLOBAL = "(global)"
FOLDER = "shrinkage.parquet"


class ShrinkageMeter:
    """Projection q, norm ratio, noise, cosine, dead and overflowing entries of rounded tensors, per layer and together.

    Give it to the lever, `LowPrecision("e4m3", meter=ShrinkageMeter(every=10))`, or hand over pairs of tensors yourself with
    `observe`. `Shrinkage` has the formulas. Sums stay on the device until a flush fetches those of many steps together; in
    between nothing waits for the device. Of sharded tensors, and of gradients rounded before the reduction, sums are added
    over the ranks.

    Args:
        every: which steps are measured, counted from 0: every so-many, or a function of the step. Default 10 [ours].
        folder: run folder for `shrinkage.parquet/`; rows there of an earlier run are removed at the first step, on resume
            those of the steps to come. Only rank 0 writes. None keeps the rows in memory.
        capacity: measured steps per flush. Default 128 [ours].

    Raises:
        ValueError: `every` or `capacity` is not a whole number of 1 or more.

    Example:
        >>> meter = ShrinkageMeter()
        >>> meter.observe(0, {"layer": (torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0]))})
        >>> meter.table().select(["layer", "projection", "dead"]).to_pylist()[0]
        {'layer': 'layer', 'projection': 0.64, 'dead': 0.5}
    """

    def __init__(
        self, every: int | Callable[[int], bool] = 10, folder: Path | str | None = None, capacity: int = 128
    ) -> None:
        for name, value in (("every", every), ("capacity", capacity)):
            if not callable(value) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
        self.every, self.capacity = every, capacity
        self._folder = None if folder is None else Path(folder)
        self._recorders: dict[tuple[str, tuple[str, ...]], Recorder] = {}
        self._rows: Parts | None = None
        self._next = 0
        self._opened = False

    def due(self, step: int) -> bool:
        """Whether `step` is measured."""
        return bool(self.every(step)) if callable(self.every) else step % self.every == 0

    def observe(
        self,
        step: int,
        pairs: Mapping[str, tuple[Tensor, Tensor]],
        format: str | Format | None = None,
        scaling: Scaling | None = None,
        kind: str = "gradients",
    ) -> None:
        """Measure pairs (original, rounded) by name, whether `step` is due or not; steps must not go back.

        Args:
            step: number of the step.
            pairs: tensors of one shape each, on one device.
            format, scaling: to which the tensors were rounded; None counts no overflow.
            kind: what they are.
        """
        known = None if format is None else named(format)
        sums = [shrinkage_sums(original, rounded, known, scaling) for original, rounded in pairs.values()]
        if sums:
            self.record({kind: Measured(step, list(pairs), torch.stack(sums))})

    def record(self, kinds: Mapping[str, Measured]) -> None:
        """Keep the sums of one step, by kind of tensor; called by `LowPrecision`."""
        self._open()
        for kind, (step, names, sums) in kinds.items():
            key = (kind, tuple(names))
            recorder = self._recorders.setdefault(key, Recorder(self.capacity))
            if not recorder.fits(sums.shape, sums.device):
                self.flush()
                recorder = self._recorders.setdefault(key, Recorder(self.capacity))
            recorder.slot(sums.shape, sums.device).copy_(sums)
            recorder.commit(step)
            self._next = max(self._next, step + 1)
        if any(recorder.full for recorder in self._recorders.values()):
            self.flush()

    def flush(self) -> None:
        """Fetch what lies on the device and append it to the table; one synchronisation."""
        recorders, self._recorders = self._recorders, {}
        if not self._writes or not recorders:
            return
        rows: dict[str, list[Any]] = {name: [] for name in COLUMNS}
        for (kind, names), (steps, sums) in zip(recorders, fetch(list(recorders.values())), strict=True):
            found = shrinkage(torch.cat([sums, sums.sum(1, keepdim=True)], 1))
            rows["step"] += [step for step in steps for _ in range(len(names) + 1)]
            rows["layer"] += [*names, GLOBAL] * len(steps)
            rows["kind"] += [kind] * (len(names) + 1) * len(steps)
            for field, values in found._asdict().items():
                flat = values.flatten()
                rows[field] += (flat.long() if field in COUNTS else flat).tolist()
        import pyarrow as pa
        import pyarrow.compute as pc

        table = pa.table(rows, schema=_schema())
        # by step; the rows of one kind at one step stay in the layers' order
        order = pa.table({"step": table["step"], "place": pa.array(range(table.num_rows))})
        self._parts.append(table.take(pc.sort_indices(order, [("step", "ascending"), ("place", "ascending")])))

    def table(self) -> pa.Table:
        """All rows so far, flushed: step, layer, kind and the fields of `Shrinkage`.

        One row for each step, kind and layer, and one of layer "(global)" for all of a kind together; kinds are "gradients",
        "weights" (those that the step's forward pass saw), and the optimizer's names of its momentum buffers.
        """
        self.flush()
        return self._parts.table(before=self._next)

    def to_pandas(self) -> Any:
        """`table()` as a pandas frame; ImportError where pandas is not installed."""
        return self.table().to_pandas()

    def state_dict(self) -> dict[str, Any]:
        """Flushes; the step to go on from and, without a folder, the rows as bytes (a uint8 tensor)."""
        self.flush()
        return {"next": self._next, "rows": self._parts.state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state: rows of later steps are removed.

        Raises:
            ValueError: the state is not a meter's, or kept its rows elsewhere (in memory, in a folder).
        """
        if set(state) != {"next", "rows"}:
            raise ValueError(f"the saved state has {sorted(state)}, not what a ShrinkageMeter saves")
        self._recorders = {}
        self._next, self._opened = int(state["next"]), True
        if self._writes:
            self._parts.restore(state["rows"], self._next)

    @property
    def _parts(self) -> Parts:
        """Where the rows go; made when first needed, since pyarrow is slow to import."""
        if self._rows is None:
            self._rows = Parts(_schema(), None if self._folder is None else self._folder / FOLDER)
        return self._rows

    @property
    def _writes(self) -> bool:
        return self._folder is None or not is_distributed() or dist.get_rank() == 0

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            if self._folder is not None and self._writes:
                self._parts.drop_from(0)

    def __repr__(self) -> str:
        every = getattr(self.every, "__name__", "function") if callable(self.every) else self.every
        return f"ShrinkageMeter(every={every})"


COLUMNS = ("step", "layer", "kind", *Shrinkage._fields)
COUNTS = ("n", "nan", "inf")


def _schema() -> pa.Schema:
    import pyarrow as pa

    types = {"layer": pa.string(), "kind": pa.string()} | {name: pa.int64() for name in ("step", *COUNTS)}
    return pa.schema([(name, types.get(name, pa.float64())) for name in COLUMNS])

"""ShrinkageMeter: what rounding did to every layer, step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trimtab.precision.format import Format, named
from trimtab.precision.scaling import Scaling
from trimtab.precision.shrinkage import Measured, shrinkage_sums
from trimtab.precision.shrinkage_rows import ShrinkageRows
from trimtab.tables.logged import Logged
from trimtab.tables.rows import SECONDS

if TYPE_CHECKING:
    import pyarrow as pa


class ShrinkageMeter(Logged[ShrinkageRows]):
    """Projection q, norm ratio, noise, cosine, dead and overflowing entries of rounded tensors, per layer and together.

    Give it to the lever, `LowPrecision("e4m3", meter=ShrinkageMeter(every=10))`, or hand over pairs of tensors yourself with
    `observe`. `Shrinkage` has the formulas. Sums stay on the device until a flush fetches those of many steps together; in
    between nothing waits for the device. Of sharded tensors, and of gradients rounded before the reduction, sums are added
    over the ranks.

    Args:
        every: which steps are measured, counted from 0: every so-many, or a function of the step. Default 10 [ours].
        folder: run folder for `shrinkage.parquet/`, of this meter alone; a loaded state goes on with the rows before its
            step. Only rank 0 writes. None keeps the rows in memory.
        capacity: measured steps per flush. Default 128 [ours].
        seconds: rows for a folder wait no longer than this for the next step to write them, and no longer than the script.
            Default 60 [ours].
        overwrite: replace the rows that an earlier run left in the folder. Default False: the first step refuses them.

    Raises:
        ValueError: `every` or `capacity` is not a whole number of 1 or more, `seconds` not above 0; (at a step) the folder
            holds rows of an earlier run, or another meter writes there.

    Example:
        >>> meter = ShrinkageMeter()
        >>> meter.observe(0, {"layer": (torch.tensor([3.0, 4.0]), torch.tensor([0.0, 4.0]))})
        >>> meter.table().select(["layer", "projection", "dead"]).to_pylist()[0]
        {'layer': 'layer', 'projection': 0.64, 'dead': 0.5}
    """

    def __init__(
        self,
        every: int | Callable[[int], bool] = 10,
        folder: Path | str | None = None,
        capacity: int = 128,
        seconds: float = SECONDS,
        *,
        overwrite: bool = False,
    ) -> None:
        super().__init__(every, ShrinkageRows(capacity, folder, seconds=seconds, overwrite=overwrite))
        self._next = 0

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
        self._rows.open(0)
        for kind, (step, names, sums) in kinds.items():
            self._rows.add(step, kind, names, sums)
            self._next = max(self._next, step + 1)
        self._rows.committed()

    def table(self) -> pa.Table:
        """All rows so far, flushed: step, layer, kind and the fields of `Shrinkage`.

        One row for each step, kind and layer, and one of layer "(global)" for all of a kind together; kinds are "gradients",
        "weights" (those that the step's forward pass saw), and the optimizer's names of its momentum buffers.
        """
        self.flush()
        return self._rows.parts[0].table(before=self._next)

    def state_dict(self) -> dict[str, Any]:
        """Flushes; the step to go on from and, without a folder, the rows as bytes (a uint8 tensor)."""
        return {"next": self._next, "rows": self._rows.state()[0]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state: rows of later steps are removed.

        Raises:
            ValueError: the state is not a meter's, or kept its rows elsewhere (in memory, in a folder).
        """
        self._checked_state(state, "next", "rows")
        self._rows.restore((state["rows"],), int(state["next"]))
        self._next = int(state["next"])

    def __repr__(self) -> str:
        return f"ShrinkageMeter(every={self._every_in_words()})"

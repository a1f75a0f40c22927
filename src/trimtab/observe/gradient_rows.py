"""What a GradientTracker has measured, from the device to its two tables."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trimtab.observe.tables import gradients_schema, gradients_table, signals_schema, signals_table
from trimtab.tables.recorder import Recorder, fetch
from trimtab.tables.rows import Rows

if TYPE_CHECKING:
    import pyarrow as pa

GRADIENTS_FOLDER, SIGNALS_FOLDER = "gradients.parquet", "signals.parquet"


class GradientRows(Rows):
    """Sums of layers and values of signals, one row each per logged step.

    Args:
        track, statistics, small_format: of the tracker.
        capacity: logged steps that the buffers hold.
        folder, seconds, overwrite: see `Rows`.

    Attributes:
        sums, signals: the buffers.
        layers, signal_names: what their columns are called; flush before they change.
    """

    def __init__(
        self,
        track: Sequence[str],
        statistics: Sequence[str],
        small_format: str,
        capacity: int,
        folder: Path | str | None,
        seconds: float,
        *,
        overwrite: bool,
    ) -> None:
        super().__init__(folder, (GRADIENTS_FOLDER, SIGNALS_FOLDER), seconds, overwrite=overwrite)
        self.track, self.statistics, self.small_format = track, statistics, small_format
        self.sums, self.signals = Recorder(capacity), Recorder(capacity)
        self.layers: list[str] = []
        self.signal_names: list[str] = []

    def schemas(self) -> Sequence[pa.Schema]:
        """Of the layers' table and of the signals'."""
        return gradients_schema(self.small_format), signals_schema()

    @property
    def buffers(self) -> Collection[Recorder]:
        """Sums and signals."""
        return self.sums, self.signals

    def collect(self) -> Sequence[pa.Table]:
        """Both tables' new rows."""
        (steps, raw), (signal_steps, values) = fetch([self.sums, self.signals])
        rows = gradients_table(steps, raw, self.layers, self.track, self.statistics, self.small_format)
        return rows, signals_table(signal_steps, values, self.signal_names)

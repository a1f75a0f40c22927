"""A tracker's rows in TensorBoard, where it is installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.observe.gradient_tracker import GradientTracker

if TYPE_CHECKING:
    import pyarrow as pa


class TensorBoard:
    """Writes what a tracker finds as scalars, at each of its flushes: `gradients/std/layer1.0.weight`, `signals/alpha`.

    Args:
        writer: a `torch.utils.tensorboard.SummaryWriter`, or a folder to open one in.
        statistics: which columns. Default std, norm and max_abs [ours]. Values that are null or not finite are left out.

    Raises:
        ImportError: a folder is given and TensorBoard is not installed.

    Example:
        >>> class Writer:
        ...     def add_scalar(self, tag, value, step): print(tag, value, step)
        ...     def flush(self): pass
        >>> import torch, trimtab
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> tracker = GradientTracker()
        >>> _ = TensorBoard(Writer(), statistics=["std"]).follow(tracker)
        >>> handle = trimtab.attach(optimizer, tracker, model=net)
        >>> net(torch.tensor([[1.0, 3.0]])).sum().backward()
        >>> optimizer.step(); tracker.flush()
        gradients/std/weight 1.0 0
        gradients/std/(global) 1.0 0
    """

    def __init__(self, writer: Any, statistics: Sequence[str] = ("std", "norm", "max_abs")) -> None:
        if isinstance(writer, str | Path):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "TensorBoard is not installed: pip install tensorboard, or pass a writer of your own"
                ) from error
            writer = SummaryWriter(str(writer))
        self.writer = writer
        self.statistics = tuple(statistics)

    def follow(self, tracker: GradientTracker) -> Callable[[], None]:
        """Write at every flush of `tracker` from now on; returns a function that ends it."""
        return tracker.subscribe(self)

    def __call__(self, rows: pa.Table, signals: pa.Table) -> None:
        """Write these rows."""
        for row in rows.select(["step", "kind", "layer", *self.statistics]).to_pylist():
            for name in self.statistics:
                self._add(f"{row['kind']}/{name}/{row['layer']}", row[name], row["step"])
        for row in signals.to_pylist():
            self._add(f"signals/{row['name']}", row["value"], row["step"])
        self.writer.flush()

    def _add(self, tag: str, value: float | None, step: int) -> None:
        if value is not None and math.isfinite(value):
            self.writer.add_scalar(tag, value, step)

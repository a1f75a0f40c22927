"""A tracker's rows in TensorBoard, where it is installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trimtab.observe.sinks import STATISTICS, Sink


class TensorBoard(Sink):
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
        >>> tracker = trimtab.observe.GradientTracker()
        >>> _ = TensorBoard(Writer(), statistics=["std"]).follow(tracker)
        >>> handle = trimtab.attach(optimizer, tracker, model=net)
        >>> net(torch.tensor([[1.0, 3.0]])).sum().backward()
        >>> optimizer.step(); tracker.flush()
        gradients/std/weight 1.0 0
        gradients/std/(global) 1.0 0
    """

    def __init__(self, writer: Any, statistics: Sequence[str] = STATISTICS) -> None:
        if isinstance(writer, str | Path):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise ImportError(
                    "TensorBoard is not installed: pip install tensorboard, or pass a writer of your own"
                ) from error
            writer = SummaryWriter(str(writer))
        super().__init__(statistics)
        self.writer = writer

    def write(self, values: dict[str, float], step: int) -> None:
        """Add the scalars."""
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def note(self, text: str, step: int) -> None:
        """Add the words."""
        self.writer.add_text("alarms", text, step)
        self.writer.flush()

    def finish(self) -> None:
        """Close the writer."""
        self.writer.close()

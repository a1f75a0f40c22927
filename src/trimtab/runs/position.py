"""Where a run stands among its epochs and steps, and what it has to show so far."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from trimtab.collectives import sum_over_ranks
from trimtab.runs.metric import METRICS, Metric
from trimtab.runs.tracked import Latest


@dataclass(frozen=True)
class Progress:
    """Where a run stands; handed to the caller's function after every step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float | None
    validation: float | None
    metric: Metric = METRICS["accuracy"]
    """What `validation` is."""
    latest: Latest | None = None
    """Gradients at the last step that was fetched, where they are tracked."""


class Position:
    """Epoch and step, the epoch's loss so far, the rows of the epochs done, and time spent.

    Args:
        steps_per_epoch: how many an epoch has.
        device: on which losses are summed, so that no step waits for them.

    Attributes:
        epoch: epochs done.
        step_in_epoch: steps done since.
        epoch_loss: sum of their losses, float64.
        rows: one for each epoch done, as in `metrics.jsonl`.
        step_seconds, train_seconds: of each step of this process, and of all steps ever.
        process_seconds: processor time of all steps ever, of all threads; a busy machine does not lengthen it.
    """

    def __init__(self, steps_per_epoch: int, device: torch.device) -> None:
        self.steps_per_epoch = steps_per_epoch
        self.epoch, self.step_in_epoch = 0, 0
        self.epoch_loss = torch.zeros((), dtype=torch.float64, device=device)
        self.rows: list[dict[str, Any]] = []
        self.step_seconds: list[float] = []
        self.train_seconds, self.process_seconds = 0.0, 0.0

    @property
    def step(self) -> int:
        """Steps done in all; the 0-based number of the next one."""
        return self.epoch * self.steps_per_epoch + self.step_in_epoch

    @property
    def at_end(self) -> bool:
        """Whether the epoch has no step left."""
        return self.step_in_epoch == self.steps_per_epoch

    @property
    def median_step_seconds(self) -> float:
        """Median wall seconds of one optimizer step."""
        return statistics.median(self.step_seconds) if self.step_seconds else 0.0

    def stepped(self, loss: Tensor, seconds: float, process_seconds: float = 0.0) -> None:
        """A step was taken."""
        self.epoch_loss += loss
        self.step_in_epoch += 1
        self.step_seconds.append(seconds)
        self.train_seconds += seconds
        self.process_seconds += process_seconds

    def end_epoch(self, row: dict[str, Any]) -> None:
        """The epoch is done and has this to show."""
        self.rows.append(row)
        self.epoch, self.step_in_epoch = self.epoch + 1, 0
        self.epoch_loss.zero_()

    def progress(
        self, epochs: int, loss: float | None, latest: Latest | None, metric: Metric = METRICS["accuracy"]
    ) -> Progress:
        """For the caller's function."""
        name = f"validation_{metric.column}"
        last = next((row[name] for row in reversed(self.rows) if name in row), None)
        return Progress(self.epoch, epochs, self.step, epochs * self.steps_per_epoch, loss, last, metric, latest)

    def state(self, world_size: int) -> dict[str, Any]:
        """What a checkpoint keeps; the loss is that of one rank, on average."""
        return {
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "epoch_loss": sum_over_ranks(self.epoch_loss).item() / world_size,
            "rows": self.rows,
            "train_seconds": self.train_seconds,
            "process_seconds": self.process_seconds,
            "step_seconds": self.median_step_seconds,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint that holds what `state` gave."""
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.epoch_loss.fill_(state["epoch_loss"])
        self.rows, self.train_seconds = state["rows"], state["train_seconds"]
        self.process_seconds = state.get("process_seconds", 0.0)  # older checkpoints hold none
        self.step_seconds = [state["step_seconds"]] if state["step_seconds"] else []

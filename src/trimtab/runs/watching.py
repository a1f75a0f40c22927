"""What a recipe's `track` asks for: gradients, weights and updates at steps, curvature after epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from trimtab import datasets
from trimtab.observe import GradientTracker
from trimtab.runs.curvature_tracking import CurvatureTracking
from trimtab.runs.parallel import Devices
from trimtab.runs.recipe import Recipe
from trimtab.runs.tracked import Latest, columns_of, latest


class Watching:
    """Looks at a run and changes nothing.

    Args:
        recipe: `track` and what belongs to it.
        data: the loaded data set.
        devices: where, and among which ranks.
        folder: the run folder, which the tracker writes to.

    Attributes:
        tracker: None where no gradients, weights or updates are tracked.
        latest: what its last flush brought, for the display.

    Raises:
        ValueError: curvature of sharded parameters, or of fewer images than ranks.
    """

    def __init__(self, recipe: Recipe, data: datasets.DataSet, devices: Devices, folder: Path) -> None:
        kinds = tuple(kind for kind in recipe.track if kind != "curvature")
        self.tracker = GradientTracker(kinds, recipe.track_every, folder=folder, overwrite=True) if kinds else None
        self.latest: Latest | None = None
        if self.tracker is not None:
            self.tracker.subscribe(self._look)
        self._curvature = CurvatureTracking(recipe, data, devices) if "curvature" in recipe.track else None

    def _look(self, rows: Any, signals: Any) -> None:
        self.latest = latest(columns_of(rows), signals.to_pydict()) or self.latest

    def flush(self) -> None:
        """Bring what the tracker holds to its tables, and to `latest`."""
        if self.tracker is not None:
            self.tracker.flush()

    def after_epoch(self, epoch: int, model: nn.Module) -> dict[str, Any]:
        """What the row of `metrics.jsonl` has of the curvature after so many epochs; nothing where it is not due."""
        if self._curvature is None or not self._curvature.due(epoch):
            return {}
        return self._curvature.measure(model)

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps."""
        return None if self.tracker is None else self.tracker.state_dict()

    def restore(self, state: dict[str, Any] | None, step: int) -> None:
        """Go on at `step`; without a state, the run was not tracked so far."""
        if self.tracker is None:
            return
        if state is not None:
            self.tracker.load_state_dict(state)
        else:
            self.tracker.step = step

    @contextmanager
    def rows_kept(self, levers: Sequence[Any]) -> Iterator[None]:
        """After an exception the rows of tracker and of the levers' meters are on disk, also where the process lives on."""
        try:
            yield
        except Exception:
            for rows in (self.tracker, *(getattr(lever, "meter", None) for lever in levers)):
                if rows is not None:
                    rows.flush()
            raise

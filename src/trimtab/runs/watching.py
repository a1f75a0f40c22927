"""What a recipe's `track` asks for: gradients, weights, updates and meters at steps, curvature and bearing after epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from trimtab import datasets
from trimtab.observe import (
    ActivationStatistics,
    AttentionStatistics,
    GradientNoiseScale,
    GradientTracker,
    Meter,
    NLMCosine,
    SoftmaxCollapse,
    UpdateRatio,
)
from trimtab.observe.tables import KINDS
from trimtab.runs.bearing import Batch, Bearing
from trimtab.runs.curvature_tracking import CurvatureTracking
from trimtab.runs.parallel import Devices
from trimtab.runs.recipe import Recipe
from trimtab.runs.tracked import Latest, columns_of, latest

METERS = ("update_ratio", "nlm_cosine", "noise_scale", "softmax_collapse", "activations", "attention")


def _meter(word: str, recipe: Recipe, devices: Devices, model: nn.Module) -> Meter:
    """The meter that a word of `track` names."""
    every = recipe.track_every
    if word == "noise_scale":
        if recipe.accumulate * devices.world_size < 2:
            raise ValueError(
                "track noise_scale compares the gradients of parts of a step: set accumulate to 2 or more, or train on "
                "several processes"
            )
        return GradientNoiseScale(recipe.data.batch_size, every, scaler=devices.scaler)
    if word == "activations":
        return ActivationStatistics(model, every=every)
    if word == "attention":
        return AttentionStatistics(model, every)
    plain: dict[str, type[Meter]] = {
        "update_ratio": UpdateRatio, "nlm_cosine": NLMCosine, "softmax_collapse": SoftmaxCollapse,
    }  # fmt: skip
    return plain[word](every)


class Watching:
    """Looks at a run and changes nothing.

    Args:
        recipe: `track` and what belongs to it.
        data: the loaded data set.
        devices: where, and among which ranks.
        folder: the run folder, which the tracker writes to.
        model: the network itself.

    Attributes:
        tracker: None where nothing is tracked at steps.
        meters: what it records beside gradients, weights and updates.
        latest: what its last flush brought, for the display.
        bearing: None where it is not tracked.

    Raises:
        ValueError: curvature or bearing of sharded parameters, curvature of fewer images than ranks, bearing of a network
            without a weight to prune; a meter that finds nothing to look at.
    """

    def __init__(
        self, recipe: Recipe, data: datasets.DataSet, devices: Devices, folder: Path, model: nn.Module
    ) -> None:
        kinds = tuple(kind for kind in recipe.track if kind in KINDS)
        self._by_word = {word: _meter(word, recipe, devices, model) for word in recipe.track if word in METERS}
        self.meters = tuple(self._by_word.values())
        self.tracker: GradientTracker | None = None
        if kinds or self.meters:
            self.tracker = GradientTracker(kinds or ("gradients",), recipe.track_every, folder=folder, overwrite=True)
        self.latest: Latest | None = None
        if self.tracker is not None:
            self.tracker.subscribe(self._look)
        self._curvature = CurvatureTracking(recipe, data, devices) if "curvature" in recipe.track else None
        self.bearing = Bearing(recipe, data, devices, model) if "bearing" in recipe.track else None

    def _look(self, rows: Any, signals: Any) -> None:
        self.latest = latest(columns_of(rows), signals.to_pydict()) or self.latest

    def see_outputs(self, outputs: Tensor, targets: Tensor) -> None:
        """Tell the meters that ask for it the outputs of a micro-batch."""
        for meter in self.meters:
            if isinstance(meter, SoftmaxCollapse):
                meter.see_outputs(outputs, targets)

    def flush(self) -> None:
        """Bring what the tracker holds to its tables, and to `latest`."""
        if self.tracker is not None:
            self.tracker.flush()

    def last_step(self, epoch: int, model: nn.Module, batch: Batch, rate: float, step: Callable[[], Tensor]) -> Tensor:
        """Take the last step before so many epochs are done, looking at it where that is due."""
        if self.bearing is None or not self.bearing.due(epoch):
            return step()
        return self.bearing.around_step(model, batch, rate, step)

    def after_epoch(self, epoch: int, model: nn.Module) -> dict[str, Any]:
        """What the row of `metrics.jsonl` has of curvature and bearing after so many epochs; nothing where they are not due."""
        row: dict[str, Any] = {}
        for one in (self._curvature, self.bearing):
            if one is not None and one.due(epoch):
                row |= one.measure(model)
        return row

    def state(self) -> dict[str, Any] | None:
        """What a checkpoint keeps."""
        if self.tracker is None:
            return None
        return {
            **self.tracker.state_dict(),
            "meters": {word: meter.state_dict() for word, meter in self._by_word.items()},
        }

    def restore(self, state: dict[str, Any] | None, step: int) -> None:
        """Go on at `step`; without a state, the run was not tracked so far."""
        if self.tracker is None:
            return
        meters = {} if state is None else state.get("meters", {})
        if state is not None:
            self.tracker.load_state_dict({key: value for key, value in state.items() if key != "meters"})
        else:
            self.tracker.step = step
        for word, meter in self._by_word.items():
            meter.step = self.tracker.step  # one that was not asked for so far begins here
            if word in meters:
                meter.load_state_dict(meters[word])

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

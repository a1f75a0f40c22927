"""A run's numbers, handed on to the sinks that its recipe names while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import Any

from trimtab.observe.sinks import Sink, open_sink
from trimtab.optimizers import Alarm
from trimtab.registry import settings_name
from trimtab.runs.position import Progress
from trimtab.runs.training_run import TrainingRun


class Sinking:
    """What a run tells: its loss at reports, its rows after epochs.

    Args:
        sinks: where to.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = sinks

    def progress(self, progress: Progress) -> None:
        """The mean loss of the epoch so far."""
        self._log({"train/loss": progress.loss}, progress.step)

    def alarm(self, alarm: Alarm) -> None:
        """An alarm of a guard."""
        for sink in self._sinks:
            sink.alarm(alarm)

    def epoch(self, row: Mapping[str, Any], step: int) -> None:
        """A row of `metrics.jsonl`."""
        self._log({f"epoch/{name}": value for name, value in row.items()}, step)

    def _log(self, values: Mapping[str, Any], step: int) -> None:
        for sink in self._sinks:
            sink.log(values, step)


def _settings(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _settings(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _closed(sink: Sink, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
    sink.close(error)


@contextmanager
def sinking(run: TrainingRun) -> Iterator[Sinking]:
    """Open the sinks of the recipe on the first process, let them follow the tracker, close them at the end."""
    recipe = run.recipe
    used = {*map(settings_name, recipe.used), "data", "model", "schedule", "precision"}
    config = {
        key: value
        for key, value in _settings(recipe.plain(mode="json"))
        if "." not in key or key.partition(".")[0] in used
    }
    title, sinks = f"{recipe.method} seed {recipe.seed}", []
    with ExitStack() as closing:  # the last first: rows handed on, followers off, sinks finished
        for name in recipe.sink if run.devices.rank == 0 else ():
            sinks.append(open_sink(name, run.folder.path, project=recipe.name, run=title, config=config))
            closing.push(partial(_closed, sinks[-1]))
        if sinks and run.watching.tracker is not None:
            for sink in sinks:
                closing.callback(sink.follow(run.watching.tracker))
            closing.callback(run.watching.flush)
        told = Sinking(sinks)
        for stop in _alarms_kept(run, told) if run.devices.rank == 0 else ():
            closing.callback(stop)
        yield told


def _alarms_kept(run: TrainingRun, told: Sinking) -> Iterator[Callable[[], None]]:
    """Let every alarm go to the folder and to the sinks; yields what ends it."""
    guards = run.steering.guards

    def keep() -> None:
        alarms = sorted((alarm for guard in guards for alarm in guard.alarms), key=lambda alarm: alarm.step)
        run.folder.write_alarms([asdict(alarm) for alarm in alarms])

    def heard(alarm: Alarm) -> None:
        keep()
        told.alarm(alarm)

    if guards:
        keep()  # of a resumed run: those after its checkpoint will come again
    for guard in guards:
        yield guard.subscribe(heard)

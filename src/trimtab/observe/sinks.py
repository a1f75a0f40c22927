"""Numbers of a run, handed on to where people already look: TensorBoard, Weights & Biases, MLflow, trackio, JSON lines."""

from __future__ import annotations

import importlib.util
import json
import math
import re
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trimtab.checks import hint
from trimtab.lazy import at

if TYPE_CHECKING:
    import pyarrow as pa

    from trimtab.observe.gradient_tracker import GradientTracker

STATISTICS = ("std", "norm", "max_abs")
"""Columns of a tracker that are handed on unless others are asked for [ours]."""


class Sink(ABC):
    """Takes named numbers at steps; follows a tracker, whose rows become `gradients/std/layer1.0.weight` and `signals/alpha`.

    A sink of your own has `write` and perhaps `finish`. Values that are None or not finite are left out.

    Args:
        statistics: which columns of a tracker.

    Example:
        >>> class Printed(Sink):
        ...     def write(self, values, step): print(step, values)
        >>> Printed().log({"loss": 0.5, "lr": None}, step=3)
        3 {'loss': 0.5}
    """

    def __init__(self, statistics: Sequence[str] = STATISTICS) -> None:
        self.statistics = tuple(statistics)

    @abstractmethod
    def write(self, values: dict[str, float], step: int) -> None:
        """Hand these finite numbers on."""

    def finish(self) -> None:  # noqa: B027  (not every sink has something to close)
        """No more numbers will come."""

    def close(self, error: BaseException | None = None) -> None:
        """No more numbers will come, because the run ended or because of `error`; here `finish`, whatever the reason."""
        self.finish()

    def log(self, values: Mapping[str, Any], step: int) -> None:
        """Hand on what is a finite number."""
        found = {
            name: float(value)
            for name, value in values.items()
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        }
        if found:
            self.write(found, step)

    def note(self, text: str, step: int) -> None:  # noqa: B027  (not every sink takes words)
        """Hand a sentence on, where the sink takes words."""

    def alarm(self, alarm: Any) -> None:
        """Hand on an alarm of a guard: 1 as `alarms/KIND` at its step, and its sentence; `guard.subscribe(sink.alarm)`."""
        self.log({f"alarms/{alarm.kind}": 1.0}, alarm.step)
        self.note(alarm.text, alarm.step)

    def follow(self, tracker: GradientTracker) -> Callable[[], None]:
        """Take the rows of every flush of `tracker` from now on; returns a function that ends it."""
        return tracker.subscribe(self)

    def __call__(self, rows: pa.Table, signals: pa.Table) -> None:
        """Hand these rows of a tracker on, step by step."""
        steps: dict[int, dict[str, Any]] = {}
        for row in rows.select(["step", "kind", "layer", *self.statistics]).to_pylist():
            own = steps.setdefault(row["step"], {})
            own |= {f"{row['kind']}/{name}/{row['layer']}": row[name] for name in self.statistics}
        for row in signals.to_pylist():
            steps.setdefault(row["step"], {})[f"signals/{row['name']}"] = row["value"]
        for step in sorted(steps):
            self.log(steps[step], step)


class JsonLines(Sink):
    """One line for each step: `{"step": 3, "train/loss": 0.5}`.

    Args:
        file: to append to.
        statistics: which columns of a tracker.
    """

    def __init__(self, file: Path | str, statistics: Sequence[str] = STATISTICS) -> None:
        super().__init__(statistics)
        self.file = Path(file)

    def write(self, values: dict[str, float], step: int) -> None:
        """Append a line."""
        self._append({"step": step, **values})

    def note(self, text: str, step: int) -> None:
        """Append a line with the words as `note`."""
        self._append({"step": step, "note": text})

    def _append(self, line: Mapping[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(line) + "\n")


class WandB(Sink):
    """Weights & Biases, by a run of yours: what `wandb.init(...)` returned. `WANDB_MODE=offline` works without a server.

    Args:
        run: with `log(values, step=...)` and `finish()`.
        statistics: which columns of a tracker.
    """

    def __init__(self, run: Any, statistics: Sequence[str] = STATISTICS) -> None:
        super().__init__(statistics)
        self.run, self._step = run, 0

    def write(self, values: dict[str, float], step: int) -> None:
        """Log; a step that is over there already goes to the last one, since wandb drops what is behind."""
        self._step = max(self._step, step)
        self.run.log(values, step=self._step)

    def note(self, text: str, step: int) -> None:
        """Send an alert, where the run has them."""
        if callable(alert := getattr(self.run, "alert", None)):
            alert(title="trimtab", text=text)

    def finish(self) -> None:
        """Close the run."""
        self.run.finish()

    def close(self, error: BaseException | None = None) -> None:
        """Close the run, after an error as a failed one."""
        self.run.finish() if error is None else self.run.finish(exit_code=1)


class Trackio(Sink):
    """trackio, which keeps everything on this machine: what `trackio.init(...)` returned.

    Args:
        run: with `log(values, step=...)` and `finish()`.
        statistics: which columns of a tracker.
    """

    def __init__(self, run: Any, statistics: Sequence[str] = STATISTICS) -> None:
        super().__init__(statistics)
        self.run = run

    def write(self, values: dict[str, float], step: int) -> None:
        """Log."""
        self.run.log(values, step=step)

    def note(self, text: str, step: int) -> None:
        """Send an alert, where this version has them."""
        if callable(alert := getattr(self.run, "alert", None)):
            alert(title="trimtab", text=text)

    def finish(self) -> None:
        """Close the run."""
        self.run.finish()


class MLflow(Sink):
    """MLflow, by its client: metrics of one run, written in batches.

    Args:
        client: an `mlflow.MlflowClient`.
        run_id: the run to write to.
        statistics: which columns of a tracker.
    """

    MOST = 1000
    """Metrics that MLflow takes in one batch."""

    def __init__(self, client: Any, run_id: str, statistics: Sequence[str] = STATISTICS) -> None:
        super().__init__(statistics)
        self.client, self.run_id = client, run_id

    def write(self, values: dict[str, float], step: int) -> None:
        """Log; characters that MLflow refuses in names become underscores."""
        metric = at("mlflow.entities:Metric")
        now = int(1000 * time.time())
        found = [metric(re.sub(r"[^\w\-./ ]", "_", name), value, now, step) for name, value in values.items()]
        for start in range(0, len(found), self.MOST):
            self.client.log_batch(self.run_id, metrics=found[start : start + self.MOST])

    def note(self, text: str, step: int) -> None:
        """Keep it as a tag of the run."""
        self.client.set_tag(self.run_id, f"note.{step}", text)

    def finish(self) -> None:
        """Mark the run as finished."""
        self.client.set_terminated(self.run_id)

    def close(self, error: BaseException | None = None) -> None:
        """Mark the run as finished, killed (Ctrl-C) or failed."""
        status = "FINISHED" if error is None else "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        self.client.set_terminated(self.run_id, status)


def _tensorboard(folder: Path, project: str, name: str, config: Mapping[str, Any]) -> Sink:
    sink: Sink = at("trimtab.observe.tensorboard:TensorBoard")(folder / "tensorboard")
    return sink


def _wandb(folder: Path, project: str, name: str, config: Mapping[str, Any]) -> Sink:
    return WandB(at("wandb:init")(project=project, name=name, config=dict(config), dir=str(folder)))


def _trackio(folder: Path, project: str, name: str, config: Mapping[str, Any]) -> Sink:
    return Trackio(at("trackio:init")(project=project, name=name, config=dict(config), resume="allow"))


def _mlflow(folder: Path, project: str, name: str, config: Mapping[str, Any]) -> Sink:
    client = at("mlflow:MlflowClient")()
    known = client.get_experiment_by_name(project)
    experiment = client.create_experiment(project) if known is None else known.experiment_id
    run = client.create_run(experiment, run_name=name)
    for key, value in config.items():
        client.log_param(run.info.run_id, key, str(value)[:500])
    return MLflow(client, run.info.run_id)


def _jsonl(folder: Path, project: str, name: str, config: Mapping[str, Any]) -> Sink:
    return JsonLines(folder / "sink.jsonl")


SINKS: dict[str, tuple[Callable[..., Sink], str]] = {
    "jsonl": (_jsonl, ""),
    "tensorboard": (_tensorboard, "tensorboard"),
    "trackio": (_trackio, "trackio"),
    "wandb": (_wandb, "wandb"),
    "mlflow": (_mlflow, "mlflow"),
}
"""Name -> (how it is opened, the package it needs)."""


def check_sink(name: str) -> None:
    """Refuse a sink that cannot be opened here.

    Raises:
        ValueError: no sink has this name.
        ImportError: its package is not installed.
    """
    if name not in SINKS:
        raise ValueError(f"unknown sink {name!r}; {hint(name, SINKS, 'sinks')}")
    package = SINKS[name][1]
    if package and importlib.util.find_spec(package) is None:
        raise ImportError(f"the sink {name} needs {package}: pip install 'trimtab[{name}]'")


def open_sink(
    name: str,
    folder: Path | str = ".",
    *,
    project: str = "trimtab",
    run: str = "run",
    config: Mapping[str, Any] | None = None,
) -> Sink:
    """A sink by its name.

    Args:
        name: one of `SINKS`: jsonl, tensorboard, trackio, wandb, mlflow.
        folder: where those that write files here put them.
        project: wandb's and trackio's project, MLflow's experiment.
        run: what the run is called there.
        config: settings shown beside it.

    Raises:
        ValueError: no sink has this name.
        ImportError: its package is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     open_sink("jsonl", folder).log({"loss": 0.5}, step=3)
        ...     Path(folder, "sink.jsonl").read_text()
        '{"step": 3, "loss": 0.5}\\n'
    """
    check_sink(name)
    return SINKS[name][0](Path(folder), project, run, config or {})

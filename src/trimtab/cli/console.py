"""Progress and output, alike for all commands: rich on a terminal, silence with --quiet, JSON with --json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from trimtab.experiments.comparison import Standing
from trimtab.experiments.training import Progress as TrainingProgress

console = Console()
errors = Console(stderr=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=1))


def _bar(quiet: bool) -> Progress:
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=errors,
        disable=quiet,
        transient=False,
    )


@contextmanager
def training_progress(title: str, quiet: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar for one run: epoch, loss, validation accuracy, time left."""
    with _bar(quiet) as bar:
        task = bar.add_task(title, total=None, text="")

        def report(progress: TrainingProgress) -> None:
            text = f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"
            if progress.loss is not None:
                text += f"  loss {progress.loss:.4f}"
            if progress.validation is not None:
                text += f"  validation {progress.validation:.2%}"
            bar.update(task, completed=progress.step, total=progress.steps, text=text)

        yield report


@contextmanager
def study_progress(quiet: bool) -> Iterator[Callable[[Standing], None]]:
    """A bar for the whole study and a line for each run at work."""
    with _bar(quiet) as bar:
        whole = bar.add_task("runs", total=None, text="")
        lines: dict[str, Any] = {}

        def report(standing: Standing) -> None:
            bar.update(
                whole, completed=standing.finished, total=standing.total, text=f"{standing.finished}/{standing.total}"
            )
            for label, text in standing.active.items():
                share, _, rest = text.partition(" ")
                if label not in lines:
                    lines[label] = bar.add_task(f"  {label}", total=100, text=rest)
                bar.update(lines[label], completed=int(share.rstrip("%")), text=rest)
            for label in list(lines):
                if label not in standing.active:
                    bar.remove_task(lines.pop(label))

        yield report

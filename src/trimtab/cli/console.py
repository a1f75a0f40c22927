"""Progress and output, alike for all commands: rich on a terminal, silence with --quiet, JSON with --json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

if TYPE_CHECKING:
    from trimtab.runs.position import Progress as TrainingProgress
    from trimtab.runs.tracked import Latest
    from trimtab.studies.comparison import Standing

console = Console()
errors = Console(stderr=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(data, indent=1))


class _Bars(Progress):
    """Progress bars with room for a few lines below them."""

    below: Text | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the lines."""
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


def _bar(*, quiet: bool, length_known: bool = True) -> _Bars:
    share = (BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f} %")) if length_known else ()
    left = (TextColumn("left"), TimeRemainingColumn()) if length_known else ()
    return _Bars(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        *share,
        TextColumn("{task.fields[text]}", markup=False),
        TimeElapsedColumn(),
        *left,
        console=errors,
        disable=quiet,
        transient=False,
        speed_estimate_period=600,  # reports may lie more than rich's 30 seconds apart
    )


def gradient_lines(now: Latest) -> Text:
    """Three lines on the gradients of the last fetched step."""
    ends = [(word, end) for word, end in (("largest", now.largest), ("smallest", now.smallest)) if end is not None]
    updates = [] if now.update_ratio is None else [("update / weight", f"{now.update_ratio:.3g}")]
    lines = [
        [("std of all", f"{now.std:.3g}"), ("dead layers", str(now.dead)), ("non-finite", str(now.non_finite))],
        [(f"{word} layer", f"{value:.3g} {name}") for word, (name, value) in ends],
        [*updates, *((name, f"{value:.3g}") for name, value in now.signals.items())],
    ]
    text = Text(f"gradients at step {now.step}", style="bold")
    for line in filter(None, lines):
        text.append("\n ")
        for name, value in line:
            bad = name in {"dead layers", "non-finite"} and value != "0"
            text.append(f" {name} ", style="dim not bold").append(
                value + " ", style="red not bold" if bad else "not bold"
            )
    return text


@contextmanager
def training_progress(title: str, *, quiet: bool) -> Iterator[Callable[[TrainingProgress], None]]:
    """A bar for one run: epoch, loss, validation accuracy, time left; below it the gradients, where they are tracked."""
    with _bar(quiet=quiet) as bar:
        task = bar.add_task(title, total=None, text="")

        def report(progress: TrainingProgress) -> None:
            text = f"epoch {min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"
            if progress.loss is not None:
                text += f"  loss {progress.loss:.4f}"
            if progress.validation is not None:
                text += f"  validation {progress.validation:.2%}"
            if progress.latest is not None:
                bar.below = gradient_lines(progress.latest)
            bar.update(task, completed=progress.step, total=progress.steps, text=text)

        yield report


@contextmanager
def study_progress(*, quiet: bool) -> Iterator[Callable[[Standing], None]]:
    """A bar for the whole study and a line for each run at work."""
    with _bar(quiet=quiet) as bar:
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


@contextmanager
def measuring_progress(title: str, total: int | None, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar for measurements: call it with how many are done, a text, and the total where it is known only then."""
    with _bar(quiet=quiet) as bar:
        task = bar.add_task(title, total=total, text="")

        def report(done: int, text: str = "", points: int | None = total) -> None:
            bar.update(task, completed=done, total=points, text=text)

        yield report


@contextmanager
def counting_progress(title: str, *, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """A line for a job of several steps whose length is not known: step, number done, time."""
    with _bar(quiet=quiet, length_known=False) as bar:
        task = bar.add_task(title, total=None, text="")
        last = ""

        def report(step: str, done: int) -> None:
            nonlocal last
            last = f"{step} {done:,}"
            if done % 16 == 0 or done < 16:
                bar.update(task, text=last)

        yield report
        bar.update(task, text=last)

"""Progress: bars of at most 80 columns on a terminal, elsewhere a plain line for each finished run or every 30 seconds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from trimtab.cli.console import errors

if TYPE_CHECKING:
    from trimtab.runs.position import Progress as TrainingProgress
    from trimtab.runs.tracked import Latest
    from trimtab.studies.comparison import Standing

EVERY = 30.0
"""Seconds between plain lines [ours]."""
LABEL = 18
"""Columns of a run's name beside a bar; longer ones lose their middle."""


def duration(seconds: float) -> str:
    """Hours, minutes and seconds.

    Example:
        >>> duration(65), duration(7265)
        ('1:05', '2:01:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fitted(label: str, width: int = LABEL) -> str:
    """A name in at most `width` columns.

    Example:
        >>> fitted("l1[l1.strength=0.001] seed 12", 18)
        'l1[l1.st… seed 12'
    """
    if len(label) <= width:
        return label
    end = label[label.rfind(" seed ") :] if " seed " in label else ""
    return label[: width - len(end) - 2] + "…" + end


class Pace:
    """How long the rest takes, from what was done since the first look.

    Example:
        >>> clock = iter([0.0, 10.0])
        >>> pace = Pace(lambda: next(clock))
        >>> pace.left(2, 10), pace.left(4, 10)
        (None, 30.0)
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._first: tuple[float, float] | None = None

    def left(self, done: float, total: float) -> float | None:
        """Seconds left, None at the first look and while nothing was done since."""
        now = self._clock()
        if self._first is None:
            self._first = now, done
            return None
        started, before = self._first
        return (total - done) * (now - started) / (done - before) if done > before else None

    def words(self, done: float, total: float) -> str:
        """`1:05 left`, or nothing."""
        left = self.left(done, total)
        return "" if left is None else f"{duration(left)} left"


class _Bars(Progress):
    """Progress bars with room for a few lines below them."""

    below: Text | None = None

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bars, then the lines."""
        yield from super().get_renderables()
        if self.below is not None:
            yield self.below


class _Plain:
    """Lines on standard error where no terminal can show a bar: what matters at once, the rest every 30 seconds."""

    def __init__(self, *, on: bool) -> None:
        self._on, self._last = on, time.monotonic()

    def say(self, text: str, *, now: bool = False) -> None:
        """Print the text when it is due."""
        if self._on and (now or time.monotonic() - self._last >= EVERY):
            self._last = time.monotonic()
            errors.print(text, soft_wrap=True, markup=False, highlight=False)


@contextmanager
def _display(*, quiet: bool, length_known: bool = True) -> Iterator[tuple[_Bars, _Plain]]:
    """Bars that show on a terminal alone and vanish when an error is coming, and lines for everywhere else."""
    share = (BarColumn(bar_width=8), TextColumn("{task.percentage:>3.0f} %")) if length_known else ()
    bars = _Bars(
        SpinnerColumn(), TextColumn("{task.description}", markup=False), *share,
        TextColumn("{task.fields[text]}", markup=False), TextColumn("{task.fields[left]}", markup=False),
        console=errors, disable=quiet or not errors.is_terminal,
    )  # fmt: skip
    plain = _Plain(on=not quiet and not errors.is_terminal)
    with bars:
        try:
            yield bars, plain
        except BaseException:
            bars.below, bars.live.transient = None, True  # no dead line above the error
            raise


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
    """A bar for one run: epoch, loss, validation, time left; below it the gradients, where they are tracked."""
    with _display(quiet=quiet) as (bars, plain):
        task = bars.add_task(fitted(title), total=None, text="", left="")
        pace = Pace()

        def report(progress: TrainingProgress) -> None:
            text = f"{min(progress.epoch + 1, progress.epochs)}/{progress.epochs}"
            if progress.loss is not None:
                text += f" loss {progress.loss:.3f}"
            if progress.validation is not None:
                text += f" val {progress.metric.text(progress.validation)}"
            if progress.latest is not None:
                bars.below = gradient_lines(progress.latest)
            left = pace.words(progress.step, progress.steps)
            bars.update(task, completed=progress.step, total=progress.steps, text=text, left=left)
            plain.say(", ".join(filter(None, (f"{title}: epoch {text}", left))))

        yield report


@contextmanager
def study_progress(*, quiet: bool) -> Iterator[Callable[[Standing], None]]:
    """A bar for the whole study with the time left, and one for each run at work; elsewhere a line for each that ended."""
    with _display(quiet=quiet) as (bars, plain):
        whole = bars.add_task("runs", total=None, text="", left="")
        lines: dict[str, Any] = {}
        pace = Pace()
        told = 0

        def report(standing: Standing) -> None:
            nonlocal told
            shares = {label: int(text.partition("%")[0]) for label, text in standing.active.items()}
            done = standing.finished + sum(shares.values()) / 100
            counted = f"{standing.finished}/{standing.total}"
            left = pace.words(done, standing.total) if done >= standing.kept else ""
            bars.update(whole, completed=done, total=standing.total, text=counted, left=left)
            for label, text in standing.active.items():
                rest = text.partition(" ")[2]
                if label not in lines:
                    lines[label] = bars.add_task(fitted(label), total=100, text=rest, left="")
                bars.update(lines[label], completed=shares[label], text=rest)
            for label in list(lines):
                if label not in standing.active:
                    bars.remove_task(lines.pop(label))
            after = f", {left}" if left else ""
            for label in standing.ended[told:]:
                plain.say(f"{counted} runs: {label}{after}", now=True)
            told = len(standing.ended)
            working = "; ".join(f"{label} {text}" for label, text in standing.active.items())
            plain.say(f"{counted} runs: {working or 'starting'}{after}")

        yield report


@contextmanager
def measuring_progress(title: str, total: int | None, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar for measurements: call it with how many are done, a text, and the total where it is known only then."""
    with _display(quiet=quiet) as (bars, plain):
        task = bars.add_task(fitted(title, 30), total=total, text="", left="")
        pace = Pace()

        def report(done: int, text: str = "", points: int | None = total) -> None:
            left = "" if points is None else pace.words(done, points)
            bars.update(task, completed=done, total=points, text=text, left=left)
            share = f"{done:,}" if points is None else f"{done:,} of {points:,}"
            plain.say(", ".join(filter(None, (f"{title}: {share}", text, left))))

        yield report


@contextmanager
def counting_progress(title: str, *, quiet: bool) -> Iterator[Callable[[str, int], None]]:
    """A line for a job of several steps whose length is not known: step, number done."""
    with _display(quiet=quiet, length_known=False) as (bars, plain):
        task = bars.add_task(title, total=None, text="", left="")
        last = ""

        def report(step: str, done: int) -> None:
            nonlocal last
            last = f"{step} {done:,}"
            if done % 16 == 0 or done < 16:
                bars.update(task, text=last)
                plain.say(f"{title}: {last}")

        yield report
        bars.update(task, text=last)

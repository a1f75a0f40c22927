"""Progress: fits 80 columns, estimates what is left, vanishes under an error, plain lines without a terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trimtab.cli import progress
from trimtab.cli.progress import Pace, fitted, measuring_progress, study_progress, training_progress
from trimtab.runs.position import Progress
from trimtab.studies.comparison import Standing

AT_WORK = Standing(
    3, 12, {"l1+cram+[l1.strength=0.0001] seed 11": "40% epoch 128/300 loss 11.321",
     "sgd seed 0": "100% pruning on validation"},
    ("sgd seed 1 was finished before", "var seed 0 done", "var seed 1 failed"), 1,
)  # fmt: skip


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    said = io.StringIO()
    monkeypatch.setattr(progress, "errors", Console(file=said, force_terminal=True, width=200, color_system=None))
    return said


@pytest.fixture
def pipe(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    said = io.StringIO()
    monkeypatch.setattr(progress, "errors", Console(file=said))
    return said


def shown(said: io.StringIO) -> list[str]:
    text = said.getvalue().replace("\r", "\n")
    for code in ("\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A"):
        text = text.replace(code, "")
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def test_bars_fit_80_columns_and_say_what_is_left(screen: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 100_000, 8_000))
    monkeypatch.setattr(progress, "Pace", lambda: Pace(lambda: float(next(clock))))
    with study_progress(quiet=False) as report:
        report(Standing(1, 12, {}, AT_WORK.ended[:1], 1))
        report(AT_WORK)
    lines = shown(screen)
    assert max(map(len, lines)) <= 80
    assert any("runs" in line and "3/12" in line and "4:58:02 left" in line for line in lines)  # 7.6 x 8000 / 3.4 s
    with training_progress("l1+cram+[l1.strength=0.001] seed 11", quiet=False) as note:
        note(Progress(127, 300, 100, 30_000, 11.3214, 0.9876))
        note(Progress(127, 300, 200, 30_000, 11.3214, 0.9876))
    assert max(map(len, shown(screen))) <= 80
    assert any("128/300 loss 11.321 val 98.8 %" in line for line in shown(screen))


def test_no_dead_bar_stands_above_an_error(screen: io.StringIO) -> None:
    def fails() -> None:
        with measuring_progress("networks", 4, quiet=False) as report:
            report(1)
            raise ValueError("bad")

    with pytest.raises(ValueError, match="bad"):
        fails()
    assert screen.getvalue().rstrip().endswith("\x1b[2K")  # the last thing written erases the line


def test_without_a_terminal_a_line_for_each_run_that_ended(pipe: io.StringIO) -> None:
    with study_progress(quiet=False) as report:
        report(Standing(0, 12, {"sgd seed 0": "40% epoch 3/8"}))
        report(AT_WORK)
        report(AT_WORK)
    assert shown(pipe) == [
        "3/12 runs: sgd seed 1 was finished before",
        "3/12 runs: var seed 0 done",
        "3/12 runs: var seed 1 failed",
    ] or all(" left" in line for line in shown(pipe))
    assert len(shown(pipe)) == 3


def test_without_a_terminal_a_line_every_30_seconds(pipe: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with training_progress("sgd seed 0", quiet=False) as note:
        note(Progress(0, 8, 20, 800, 2.25, None))
    assert shown(pipe) == ["sgd seed 0: epoch 1/8 loss 2.250"]
    monkeypatch.setattr(progress, "EVERY", 30.0)
    with training_progress("sgd seed 0", quiet=False) as note:
        note(Progress(0, 8, 20, 800, 2.25, None))
    assert len(shown(pipe)) == 1


@pytest.mark.parametrize("where", ["screen", "pipe"])
def test_quiet_says_nothing(where: str, request: pytest.FixtureRequest) -> None:
    said = request.getfixturevalue(where)
    with study_progress(quiet=True) as report:
        report(AT_WORK)
    assert said.getvalue() == ""


@pytest.mark.parametrize("label", ["sgd seed 0", "l1+cram+[l1.strength=0.0001] seed 11", "x" * 40])
def test_names_are_fitted(label: str) -> None:
    assert len(fitted(label)) <= progress.LABEL
    assert fitted(label).endswith(label[-3:]) or "seed" not in label


@pytest.mark.parametrize("seconds", [1.0, 50.0, 200.0])
def test_time_left_is_known_from_the_second_report_on(seconds: float) -> None:
    clock = iter([seconds, 2 * seconds])
    pace = Pace(lambda: next(clock))
    assert [pace.left(done, 100) for done in (20, 40)] == [None, pytest.approx(3 * seconds)]

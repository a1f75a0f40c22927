"""What a lever expects of a run is said at its start, and what came of it stands in the record."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.runs.tiny import tiny_recipe
from trimtab.cli import main
from trimtab.runs.position import Progress
from trimtab.runs.training import train

SMALL = ["--epochs", "2", "--data.limit-train", "320"]


def numbers(line: str) -> list[float]:
    return [float(word) for word in re.findall(r"\d+\.\d+", line)]


def test_the_line_foretells_what_the_record_tells(tmp_path: Path) -> None:
    lines: list[str] = []
    recipe = tiny_recipe(levers=("var", "cram+"), epochs=2)
    folder = train(recipe, tmp_path / "run", tell=lines.append)
    (line,) = lines
    assert line.startswith("var: predicted T ")
    assert line.endswith("too short or decay too small for this lever")
    told = folder.info()["levers"]["var"]
    time, tau, start = numbers(line)
    assert told["tau"] == pytest.approx(tau, abs=0.005)
    assert told["V0/V*"] == pytest.approx(start, rel=0.05)
    assert told["T"] == pytest.approx(time, abs=0.01)
    assert folder.metrics()[0]["var.tau"] < told["tau"]
    assert "var.T stem.weight" not in folder.metrics()[0]
    assert sum(name.startswith("V/V* ") for name in told) == sum(name.startswith("T ") for name in told) > 3


def test_a_resumed_run_foretells_the_same_and_has_the_same_record(tmp_path: Path) -> None:
    recipe = tiny_recipe(levers=("var",), epochs=2)
    whole, lines = train(recipe, tmp_path / "whole"), []

    def interrupt(progress: Progress) -> None:
        if progress.step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "resumed", interrupt, lines.append)
    resumed = train(recipe, tmp_path / "resumed", tell=lines.append)
    assert whole.info()["levers"] == resumed.info()["levers"]
    first, second = map(numbers, lines)
    assert second == pytest.approx(first, abs=0.02)


@pytest.mark.parametrize(("words", "said"), [
    (["--levers", "var"], True), (["--levers", "var", "--quiet"], False), (["--levers", "l1"], False),
    (["--levers", "var", "--optimizer", "adamw"], False), (["--levers", "var", "--sgd.weight-decay", "0"], False),
])  # fmt: skip
def test_the_command_line_says_it(
    words: list[str], said: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "digits", *words, *SMALL, "--out", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert ("var: predicted T" in captured.err) == said
    assert "predicted T" not in captured.out

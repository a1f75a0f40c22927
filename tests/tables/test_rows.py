"""Rows are on disk whatever ends the script: its last line, an exception, a kill; a forked child writes none."""

from __future__ import annotations

import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import trimtab
from trimtab.observe import GradientTracker, read_table
from trimtab.tables import rows

SCRIPT = """
import os, signal, sys, torch, trimtab
from trimtab.precision import LowPrecision, ShrinkageMeter
def train(folder):
    net = torch.nn.Linear(4, 3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    tracker = trimtab.observe.GradientTracker(every=2, folder=folder, seconds={seconds})
    lever = LowPrecision("e4m3", meter=ShrinkageMeter(every=5, folder=folder, seconds={seconds}))
    trimtab.attach(optimizer, tracker, lever, model=net)
    for step in range(20):
        optimizer.zero_grad()
        net(torch.randn(8, 4)).square().mean().backward()
        optimizer.step()
train({folder!r})
{ending}
"""
FORK = "child = os.fork()\nsys.exit() if child == 0 else os.waitpid(child, 0)\nassert not os.path.exists({file!r})"


@pytest.mark.parametrize("ending", ["its last line", "raise FloatingPointError('loss is nan')", "kill"])
def test_written_whatever_ends_the_script(tmp_path: Path, ending: str) -> None:
    seconds = 1e-9 if ending == "kill" else math.inf
    part = str(tmp_path / "shrinkage.parquet" / "part-0000000015.parquet")
    lines = {"kill": "os.kill(os.getpid(), signal.SIGKILL)", "its last line": FORK.format(file=part)}
    code = SCRIPT.format(
        seconds="float('inf')" if seconds == math.inf else seconds,
        folder=str(tmp_path),
        ending=lines.get(ending, ending),
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == {"kill": -signal.SIGKILL, "its last line": 0}.get(ending, 1), ended.stderr
    assert "could not be written" not in ended.stderr
    steps = lambda name: sorted(set(read_table(tmp_path / name)["step"].to_pylist()))  # noqa: E731
    assert steps("gradients.parquet") == list(range(0, 20, 2))
    assert steps("shrinkage.parquet") == [0, 5, 10, 15]


def trained(tracker: GradientTracker, steps: int) -> Any:
    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    handle = trimtab.attach(optimizer, tracker, model=net)
    for _ in range(steps):
        net(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return handle


def test_the_oldest_row_waits_no_longer_than_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, seen = iter([0.0, 4.0, 9.0, 10.0, 11.0, 12.0, 30.0]), []
    monkeypatch.setattr(rows.time, "monotonic", lambda: next(now))
    tracker = GradientTracker(folder=tmp_path, seconds=10)
    tracker.subscribe(lambda table, signals: seen.append(sorted(set(table["step"].to_pylist()))))
    handle = trained(tracker, 7)
    assert seen == [[0, 1, 2, 3], [4, 5, 6]]
    handle.remove()


def test_rows_for_nobody_are_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_unwritten", {})
    trained(GradientTracker(), 1)
    assert not rows._unwritten
    listened, written = GradientTracker(), GradientTracker(folder=tmp_path)
    listened.subscribe(print)
    for tracker in (listened, written):
        handle = trained(tracker, 1)
        assert list(rows._unwritten.values()) == [tracker._rows]
        handle.remove()
        assert not rows._unwritten


def test_a_failure_at_exit_is_told_and_the_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_unwritten", {})
    lost, kept = GradientTracker(folder=tmp_path / "lost"), GradientTracker(folder=tmp_path / "kept")
    trained(lost, 1)
    trained(kept, 1)
    trained(GradientTracker(folder=tmp_path / "lost", overwrite=True), 1)
    with pytest.warns(UserWarning, match="lost could not be written at exit: another tracker writes in"):
        rows._write_what_waits()
    assert read_table(tmp_path / "kept" / "gradients.parquet").num_rows == 2
    assert [part.name for part in (tmp_path / "lost" / "gradients.parquet").iterdir()] == ["part-0000000000.parquet"]


@pytest.mark.parametrize("seconds", [0, -1.0, math.nan, True, "10"])
def test_seconds_must_be_above_zero(seconds: Any) -> None:
    with pytest.raises(ValueError, match="seconds must be above 0"):
        GradientTracker(seconds=seconds)

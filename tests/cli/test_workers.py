"""Studies whose runs are done by worker processes, as a user's are: one that fails, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.cli.test_cli import SMALL
from trimtab.cli import main
from trimtab.studies.plan import planned_runs
from trimtab.studies.summary import Summary

# Where the machine is busy, two threads wait for one another at full speed: a run then takes twice the processor's time.
ONE_THREAD = ["--threads", "1"]


def test_a_failing_run_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["compare", "digits", *SMALL, *ONE_THREAD, "--methods", "sgd", "--vary", "sgd.lr=0.1,1e+12", "--seeds", "0",
                 "--out", str(tmp_path), "--cost-steps", "1", "--json"])  # fmt: skip
    assert code == 1
    assert "failed: sgd[sgd.lr=1000000000000.0] seed 0: FloatingPointError" in capsys.readouterr().err
    assert len(list(tmp_path.rglob("error.txt"))) == 1
    summary = Summary.read(tmp_path / "summary.json")
    assert [run.method for run in summary.runs] == ["sgd[sgd.lr=0.1]"]
    assert [(run.method, run.why) for run in summary.missing] == [("sgd[sgd.lr=1000000000000.0]", "failed")]
    assert summary.headline.startswith("Incomplete, 1 of 2 runs is missing (1 failed). ")


def test_ctrl_c_during_compare_leaves_resumable_runs(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "trimtab", "compare", "digits", "--epochs", "400", "--methods", "sgd", "--seeds", "0",
             "--out", str(tmp_path), *ONE_THREAD, "--quiet"]  # fmt: skip
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, start_new_session=True)
    progress = tmp_path / "runs/sgd/seed0/.progress"
    deadline = time.monotonic() + 400  # imports alone can take minutes on a busy machine
    while process.poll() is None and time.monotonic() < deadline:
        if progress.exists() and "epoch" in progress.read_text():  # between two steps, no longer at the data
            break
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 130
    assert "go on" in errors
    assert "Traceback" not in errors
    assert (tmp_path / "runs/sgd/seed0/checkpoint.safetensors").exists()
    assert json.loads((tmp_path / "runs/sgd/seed0/run.json").read_text())["status"] == "interrupted"
    assert [run.label for run in planned_runs(tmp_path).values()] == ["sgd"]

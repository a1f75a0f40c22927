"""A little of `make fuzz`: every kind of file, up to 1,000 damaged versions of each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.kinds import KINDS


@pytest.fixture(scope="module")
def faults() -> dict[str, list[str]]:
    """What went wrong, by kind; in a process of its own, since a program with many threads must not fork."""
    command = [sys.executable, "-m", "tests.fuzz", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout, done.stderr
    found: dict[str, list[str]] = {}
    for fault in json.loads(done.stdout):
        found.setdefault(fault["kind"], []).append(f"{fault['number']}: {fault['what']}")
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
@pytest.mark.parametrize("kind", KINDS)
def test_damaged_files_give_the_documented_error_or_a_plausible_value(kind: str, faults: dict[str, list[str]]) -> None:
    assert not faults.get(kind)

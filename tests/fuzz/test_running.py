"""The search itself: a crash, a hang, a wrong error, a silent change are found, with the number that repeats them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.mutations import mutated

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
from tests.fuzz import running
from tests.fuzz.running import Kind, run
running.SECONDS = 1
WHOLE = b"0123456789 abcdefgh " * 3
def prepare(folder):
    (folder / "f.bin").write_bytes(WHOLE)
    return folder / "f.bin"
def reading(act):
    def read(folder):
        found = (folder / "f.bin").read_bytes()
        if found != WHOLE:
            act(found)
        return found
    return read
def fail(error):
    raise error
def hang(found):
    while True: pass
acts = {
    "crash": lambda found: os.kill(os.getpid(), signal.SIGSEGV),
    "hang": hang,
    "wrong": lambda found: fail(KeyError("x")),
    "unnamed": lambda found: fail(ValueError("something is wrong")),
    "good": lambda found: fail(ValueError("f.bin is damaged")),
}
def same(found): assert found == WHOLE
kinds = [Kind(name, prepare, reading(act)) for name, act in acts.items()]
kinds.append(Kind("silent", prepare, reading(lambda found: None), same))
print(json.dumps({kind.name: [(f.number, f.what) for f in run(kind, 5, 2)] for kind in kinds}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_every_way_to_fail_is_found_and_numbered() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    found = json.loads(done.stdout)
    assert found.pop("good") == []
    starts = {
        "crash": "ends the interpreter: SIGSEGV", "hang": "hangs", "wrong": "f.bin: KeyError at",
        "unnamed": "f.bin: the message does not name f.bin", "silent": "f.bin: AssertionError",
    }  # fmt: skip
    for name, start in starts.items():
        assert [number for number, _ in found[name]] == [5, 6]
        assert all(what.startswith(start) for _, what in found[name])


def test_a_number_always_gives_the_same_damage() -> None:
    whole = b'{"a": [1, 2.5, "x"]}' * 9
    versions = [mutated(whole, "k", number) for number in range(300)]
    assert versions == [mutated(whole, "k", number) for number in range(300)]
    assert len(set(versions)) > 200
    assert whole not in versions

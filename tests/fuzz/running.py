"""Reads many damaged versions of one file in a forked child, and says what went wrong."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import tempfile
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.mutations import mutated

SECONDS = 20
"""Processor time of one input; more is a hang."""
MEMORY = 2 * 2**30
"""Bytes of address space that a kind may add to what the program takes."""
DOCUMENTED = (ValueError, OSError)


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: what `python -m tests.fuzz` calls it.
        prepare: makes a folder ready and returns the whole files; one at a time is damaged in place.
        read: reads the folder; raises only what is documented.
        check: what must hold of anything that was read.
        wrap: makes the file of its damaged content, which is what `unwrap` got out of it: behind check sums.
        short: inputs in the short form, fewer where one takes long.
        named: whether the message must hold the file's name.
    """

    name: str
    prepare: Callable[[Path], Path | list[Path]]
    read: Callable[[Path], object]
    check: Callable[[object], None] | None = None
    wrap: Callable[[bytes], bytes] | None = None
    unwrap: Callable[[bytes], bytes] | None = None
    short: int = 1000
    named: bool = True


@dataclass(frozen=True)
class Fault:
    """What one damaged input did."""

    kind: str
    number: int
    what: str


def _one(kind: Kind, folder: Path, file: Path, whole: bytes, number: int) -> str | None:
    content = mutated(kind.unwrap(whole) if kind.unwrap else whole, kind.name, number)
    file.write_bytes(kind.wrap(content) if kind.wrap else content)
    try:
        found = kind.read(folder)
        if kind.check is not None:
            kind.check(found)
    except DOCUMENTED as error:
        if type(error).__module__ != "builtins" and not type(error).__module__.startswith("trimtab"):
            return f"{type(error).__module__}.{type(error).__name__} came through: {str(error)[:300]}"
        if kind.named and file.name not in str(error):
            return f"the message does not name {file.name}: {type(error).__name__}: {str(error)[:300]}"
        if len(str(error)) > 5000:
            return f"a message of {len(str(error))} characters: {str(error)[:100]}"
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}: {str(error)[:300]}"
    finally:
        file.write_bytes(whole)
    return None


def _child(kind: Kind, folder: Path, numbers: range, at: mmap.mmap, faults: Path) -> None:
    soft = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.simplefilter("ignore")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)  # libraries in C complain there
    files = kind.prepare(folder)
    whole = [(file, file.read_bytes()) for file in (files if isinstance(files, list) else [files])]
    kind.read(folder)  # what is whole must be read
    with faults.open("a", encoding="utf-8") as log:
        for number in numbers:
            at[:8] = number.to_bytes(8, "little")
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            file, content = whole[number % len(whole)]
            if (what := _one(kind, folder, file, content, number)) is not None:
                log.write(json.dumps([number, f"{file.name}: {what}"]) + "\n")
                log.flush()
    signal.setitimer(signal.ITIMER_PROF, 0)
    at[:8] = numbers.stop.to_bytes(8, "little")


def run(kind: Kind, first: int, count: int, most_faults: int = 20) -> list[Fault]:
    """Damage and read `count` times; a child that dies is followed by another that goes on behind the input."""
    found: list[Fault] = []
    stop = first + count
    while first < stop and len(found) < most_faults:
        with tempfile.TemporaryDirectory() as place, mmap.mmap(-1, 8) as at:
            at[:8] = (2**63).to_bytes(8, "little")
            faults = Path(place) / "faults.jsonl"
            faults.touch()
            folder = Path(place) / "folder"
            folder.mkdir()
            if (child := os.fork()) == 0:
                code = 1
                try:
                    _child(kind, folder, range(first, stop), at, faults)
                    code = 0
                except BaseException:
                    faults.write_text(json.dumps([-1, traceback.format_exc()]) + "\n", encoding="utf-8")
                finally:
                    os._exit(code)
            _, status = os.waitpid(child, 0)
            reached = int.from_bytes(at[:8], "little")
            found += [Fault(kind.name, *json.loads(line)) for line in faults.read_text(encoding="utf-8").splitlines()]
        if os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            what = "hangs" if number == signal.SIGPROF else f"ends the interpreter: {signal.Signals(number).name}"
            found.append(Fault(kind.name, reached, what))
            if reached == 2**63:
                break
            first = reached + 1
        elif os.WEXITSTATUS(status):
            break
        else:
            first = stop
    return found

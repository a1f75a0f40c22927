"""Everything that wants a GPU, in one command and a given time: the CUDA tests, the speed table, a weights study, MedCLM.

    python benchmarks/gpu/run.py --minutes 8 --out DIR [--data NPZ] [--wheels DIR] [--dry] [--parts suite speed study medclm]

Needs Python 3.11 or newer and torch 2.10 or newer as they are on the machine; neither a network nor an environment of its own.
Each part runs in a process of its own with a limit of its own. Rows reach `results.json` while a part runs, so a crash, a
limit or a kill loses what was not measured yet and nothing else. Packages that are missing are named; a folder of wheels
(`wheels.py`) can bring them.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import wheels
from packing import pack, rows_of, write_json

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
SHARES = {"suite": 0.22, "speed": 0.33, "study": 0.85, "medclm": 1.0}
"""The parts in order of worth, each with the most it may take of the time that is left."""
GRACE = 6.0
"""Seconds that a part has to end after its limit, before it is killed."""
RESERVE = 12.0
"""Seconds kept for the last part's grace and archive."""


class Run:
    """What is known so far, and where it is written."""

    def __init__(self, out: Path, minutes: float, *, dry: bool) -> None:
        self.out, self.begun, self.seconds = out, time.monotonic(), 60 * minutes
        self.results: dict[str, Any] = {
            "format": 1, "dry": dry, "minutes": minutes, "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": {}, "from_wheels": [], "parts": {},
        }  # fmt: skip

    @property
    def left(self) -> float:
        """Seconds left for parts."""
        return self.seconds - RESERVE - (time.monotonic() - self.begun)

    def write(self) -> None:
        """Bring `results.json` up to date."""
        self.results["seconds"] = round(time.monotonic() - self.begun, 1)
        write_json(self.out / "results.json", self.results)


def stop(process: subprocess.Popen[Any]) -> None:
    """End a part and everything it started: asked first, killed after a few seconds."""
    for number, patience in ((signal.SIGTERM, 4.0), (signal.SIGKILL, 4.0)):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


def tail(file: Path, lines: int = 12) -> str:
    """The end of a log."""
    return "\n".join(file.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def status_of(code: int | None, rows: list[dict[str, Any]]) -> str:
    """A part's outcome from its exit code; None stands for its limit."""
    if code is None:
        return "stopped at its limit"
    if code == 3:
        return f"missing: {next((row['missing'] for row in reversed(rows) if 'missing' in row), 'a package')}"
    return "done" if code == 0 else f"failed with exit code {code}"


def run_part(run: Run, name: str, limit: float, work: Path, extra: list[str], environment: dict[str, str]) -> None:
    """Run one part within `limit` seconds, carrying its rows over as they come."""
    folder, log = work / name, work / name / "log.txt"
    folder.mkdir()
    entry: dict[str, Any] = {"status": "running", "limit": round(limit, 1), "rows": []}
    run.results["parts"][name] = entry
    run.write()
    begun, packed, code = time.monotonic(), time.monotonic(), None
    command = [sys.executable, str(HERE / f"{name}.py"), "--folder", str(folder), "--seconds", f"{limit:.1f}", *extra]
    with log.open("w") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=REPOSITORY, start_new_session=True
        )
        try:
            while time.monotonic() - begun < limit + GRACE:
                try:
                    code = process.wait(0.5)
                    break
                except subprocess.TimeoutExpired:
                    rows = rows_of(folder)
                if len(rows) != len(entry["rows"]):
                    entry["rows"] = rows
                    run.write()
                    if time.monotonic() - packed > 15:
                        pack(folder, run.out / f"{name}.tar.gz")
                        packed = time.monotonic()
        finally:
            stop(process)
    entry["rows"] = rows_of(folder)
    entry["seconds"] = round(time.monotonic() - begun, 1)
    entry["status"] = status_of(code, entry["rows"])
    if entry["status"] != "done":
        entry["log"] = tail(log)
    if behind := pack(folder, run.out / f"{name}.tar.gz"):
        entry["left_behind"] = behind
    run.write()
    print(f"{name}: {entry['status']}, {len(entry['rows'])} rows, {entry['seconds']} s", flush=True)


def machine(environment: dict[str, str]) -> dict[str, Any]:
    """What torch sees, or why nothing can be measured."""
    command = [sys.executable, str(HERE / "device.py")]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=True)
        found: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    except subprocess.CalledProcessError as error:
        return {
            "error": error.stderr.strip().splitlines()[-1] if error.stderr.strip() else f"exit code {error.returncode}"
        }
    except (OSError, ValueError, IndexError, subprocess.TimeoutExpired) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return found


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="all parts together (default 8)")
    parser.add_argument("--out", type=Path, default=Path("gpu-results"), help="results.json and one archive per part")
    parser.add_argument("--data", type=Path, default=HERE / "data.npz", help="CIFAR-10 as data.py writes it")
    parser.add_argument(
        "--wheels", type=Path, help="folder of wheels for missing packages (default wheels/ beside this)"
    )
    parser.add_argument("--parts", nargs="+", choices=list(SHARES), default=list(SHARES), help="default all")
    parser.add_argument("--dry", action="store_true", help="the same on the CPU at toy size; its figures say nothing")
    given = parser.parse_args()
    if given.minutes <= 0:
        parser.error(f"--minutes must be above 0, got {given.minutes}")
    if given.wheels is None and (HERE / "wheels").is_dir():
        given.wheels = HERE / "wheels"
    if given.wheels is not None and not given.wheels.is_dir():
        parser.error(f"--wheels {given.wheels} is no folder")
    return given


def main() -> int:
    """0 when every part was done, 1 otherwise: `results.json` says what was not."""
    given = parsed()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no part outlives this process
    out = given.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    run = Run(out, given.minutes, dry=given.dry)
    with tempfile.TemporaryDirectory(prefix="trimtab-gpu-") as scratch:
        work, unpacked = Path(scratch) / "work", Path(scratch) / "wheels"
        work.mkdir()
        path = [str(REPOSITORY / "src"), str(unpacked), os.environ.get("PYTHONPATH", "")]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PYTHONUNBUFFERED": "1"}
        environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        if given.dry:  # toy tensors on shared cores: threads that wait shall not spin
            environment["OMP_WAIT_POLICY"] = "passive"
        if given.wheels is not None:
            run.results["from_wheels"] = wheels.unpack_missing(given.wheels.resolve(), unpacked)
        run.results["machine"] = found = machine(environment)
        run.write()
        print(json.dumps(found), flush=True)
        reason = found.get("error") or (
            None if given.dry or found["gpu"] else "torch sees no GPU; --dry runs on the CPU"
        )
        extra = ["--dry"] if given.dry else []
        if given.data.is_file() and not given.dry:
            extra += ["--data", str(given.data.resolve())]
        for name in (name for name in SHARES if name in given.parts):
            limit = SHARES[name] * run.left
            if reason is not None or limit < 10:
                run.results["parts"][name] = {"status": f"not run: {reason or 'no time left'}", "rows": []}
                run.write()
                continue
            run_part(run, name, limit, work, extra, environment)
    run.write()
    undone = [name for name, part in run.results["parts"].items() if part["status"] != "done"]
    done = f"{len(run.results['parts']) - len(undone)} parts done"
    print(f"{out / 'results.json'}: {done}{', not: ' if undone else ''}{', '.join(undone)}")
    return 1 if undone else 0


if __name__ == "__main__":
    sys.exit(main())

"""How long `import trimtab` takes beside `import torch`, in fresh processes, in turns."""

from __future__ import annotations

import statistics
import subprocess
import sys

from harness import record

STATEMENTS = ("import torch", "import trimtab")
CLOCK = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


def seconds(statement: str) -> float:
    """Time of the statement alone, without the start of the interpreter."""
    command = [sys.executable, "-c", CLOCK.format(statement)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    for statement in STATEMENTS:
        seconds(statement)
    ratios = []
    for _ in range(9):
        alone, ours = (seconds(statement) for statement in STATEMENTS)
        ratios.append(ours / alone)
    ratio = statistics.median(ratios)
    record(
        "import_time",
        [{"question": "import trimtab / import torch", "ratio": ratio, "bar": "< 2", "met": ratio < 2}],
    )

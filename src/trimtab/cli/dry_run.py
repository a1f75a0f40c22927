"""What `--dry-run` says: which runs or measurements, and what they would cost here."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from trimtab.cli.arguments import Output
from trimtab.cli.console import console, print_json
from trimtab.cli.progress import duration, fitted
from trimtab.studies.estimate import estimate
from trimtab.studies.prune_run import Split
from trimtab.studies.variants import Variant


def show_cost(
    variants: Sequence[Variant],
    folders: Sequence[Path],
    splits: Sequence[Split],
    jobs: int,
    output: Output,
    records: Path | None = None,
) -> int:
    """Print the estimate; writes nothing, trains nothing."""
    found = estimate(variants, folders, splits, records)
    total = sum(one.left_seconds for one in found)
    if output.json:
        print_json({"runs": [asdict(one) for one in found], "jobs": jobs, "seconds": total})
        return 0
    table = Table(title="what would run", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("method", overflow="fold")
    for name in ("runs", "done", "steps", "ms/step", "train", "prune", "left"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in found:
        table.add_row(
            Text(fitted(one.label, 30)), str(one.runs), str(one.finished), f"{one.steps:,}", f"{1000 * one.step_seconds:.3g}",
            duration(one.train_seconds), duration(one.prune_seconds), duration(one.left_seconds),
        )  # fmt: skip
    console.print(table)
    size = sum(one.bytes * (one.runs - one.finished) for one in found)
    beside = (
        "" if jobs == 1 else f"; {jobs} side by side divide the cores, so that saves little where one uses them all"
    )
    console.print(
        f"about {duration(total)} in all, {size / 1e6:,.0f} MB of run folders{beside}; from a few steps on this machine as "
        "busy as it is now; nothing was written",
        highlight=False,
    )
    return 0


@dataclass(frozen=True)
class Part:
    """Measurements of one kind.

    Attributes:
        what: in words.
        times: how often, at most.
        seconds: of one.
    """

    what: str
    times: int
    seconds: float


def timed(call: Callable[[], object], repeats: int = 2) -> float:
    """Seconds of a call, the fastest of some."""
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        found.append(time.perf_counter() - started)
    return min(found)


def show_parts(parts: Sequence[Part], out: Path, output: Output, facts: Mapping[str, Any] | None = None) -> int:
    """Print what would be measured and written, after `facts` (name -> value); measures nothing more, writes nothing."""
    total = sum(part.times * part.seconds for part in parts)
    if output.json:
        print_json({**(facts or {}), "parts": [asdict(part) for part in parts], "seconds": total, "writes": str(out)})
        return 0
    for name, value in (facts or {}).items():
        shown = f"{value:,}" if isinstance(value, int) else ", ".join(value) if isinstance(value, list) else str(value)
        console.print(f"{name}: {shown}", soft_wrap=True, markup=False, highlight=False)
    table = Table(title="what would be done", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    table.add_column("what", overflow="fold")
    for name in ("times", "ms each", "in all"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in parts:
        table.add_row(
            Text(part.what), f"{part.times:,}", f"{1000 * part.seconds:.3g}", duration(part.times * part.seconds)
        )
    console.print(table)
    console.print(
        f"at most about {duration(total)}, from one of each on this machine as busy as it is now", highlight=False
    )
    console.print(f"would write {out}; nothing was written", soft_wrap=True, markup=False, highlight=False)
    return 0

"""Alarms of guarded runs: crosses on the time line, and what they said."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from typing import Any

from trimtab.report.palette import Look
from trimtab.report.parts import Cell, Section, Table
from trimtab.report.traces import dots
from trimtab.studies.summary import Dynamics

SHOWN = 200
"""Alarms that the table of a run lists at most [ours]."""


def alarm_marks(method: str, runs: Sequence[Dynamics], look: Look) -> list[dict[str, Any]]:
    """Crosses at the steps of the runs' alarms, on the curve of the run itself; none for none."""
    x: list[int] = []
    y: list[float | None] = []
    texts: list[str] = []
    for run in runs:
        known = [(step, value) for step, value in zip(run.steps, run.std, strict=True) if value is not None]
        for alarm in run.alarms if known else ():
            place = min(bisect.bisect_left([step for step, _ in known], alarm.step), len(known) - 1)
            x.append(alarm.step)
            y.append(known[place][1])
            texts.append(alarm.text)
    if not x:
        return []
    marker = {"color": look.colour, "symbol": "x", "size": 9}
    return [dots(method, look, x, y, "%{text}", group=True, text=texts, marker=marker, showlegend=False)]


def alarms_section(found: Sequence[Dynamics]) -> Section | None:
    """Every alarm in a table; None where there was none."""
    rows = [
        [Cell(run.method), Cell(str(run.seed), run.seed), Cell(f"{alarm.step:,}", alarm.step), Cell(alarm.kind),
         Cell(alarm.text.partition(": ")[2] or alarm.text)]
        for run in found
        for alarm in run.alarms[:SHOWN]
    ]  # fmt: skip
    if not rows:
        return None
    left = sum(max(0, len(run.alarms) - SHOWN) for run in found)
    number = sum(len(run.alarms) for run in found)
    sentences = [f"A guard made {number:,} alarm{'s'[: number != 1]}; they stand as crosses on the curves above."]
    if left:
        sentences.append(f"{left:,} more stand in the runs' alarms.jsonl.")
    table = Table(
        "alarms", "Alarms", ["method", "seed", "step", "kind", "what"], rows, folded=len(rows) > 12, prose=True
    )
    return Section("dynamics-alarms", "Alarms", sentences, tables=[table])

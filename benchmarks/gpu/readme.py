"""The README's section "On a GPU" and the table in `benchmarks/README.md`, written from a run's results.

    python benchmarks/gpu/readme.py [DIR/results.json]

With a file: keeps it as `benchmarks/gpu/results.json` (a dry run's is refused) and fills both pages. Without: fills them from
what is kept. Where nothing is kept they say that nothing was measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from packing import write_json

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results.json"
BEGIN, END = "<!-- gpu begins -->", "<!-- gpu ends -->"
NOTHING = (
    "Not measured yet: no GPU was at hand, so the CUDA paths are written but untested, and no figure in this project speaks of "
    "one. `make gpu` runs the CUDA tests, a speed table, a weights study and MedCLM steps on a GPU in eight minutes; its dry "
    "run on a CPU is part of the test suite."
)
Results = dict[str, Any]


def measured(results: Results) -> Results:
    """`results` when they are of a GPU.

    Raises:
        ValueError: they are a dry run's, or torch saw no GPU.
    """
    if results.get("dry") or not results.get("machine", {}).get("gpu"):
        raise ValueError("these results are not of a GPU (a dry run, or torch saw none); they cannot be shown as such")
    return results


def load() -> Results | None:
    """What is kept; None when there is nothing."""
    return measured(json.loads(KEPT.read_text(encoding="utf-8"))) if KEPT.is_file() else None


def _rows(results: Results, part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = results["parts"].get(part, {}).get("rows", [])
    return rows


def _cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def _where(results: Results) -> str:
    machine = results["machine"]
    driver = f", driver {machine['driver_version']}" if "driver_version" in machine else ""
    return f"{machine['gpu']}{driver}, torch {machine['torch']}, CUDA {machine['cuda']}, {results['started'][:10]}"


def _verdict(row: dict[str, Any]) -> str:
    return "" if row.get("met") is None else "met" if row["met"] else "**missed**"


def _note(results: Results) -> str:
    """How the figures came about, where that needs a word."""
    return f" {results['note']}" if results.get("note") else ""


def _suite(results: Results) -> str:
    rows = _rows(results, "suite")
    counts = next((row for row in rows if row["question"] == "tests passed"), None)
    if counts is None:
        return "The CUDA tests were not counted."
    bad = counts.get("failed", 0) + counts.get("errors", 0)
    return f"CUDA tests: {counts['value']:.0f} passed, {bad} failed, {counts.get('skipped', 0)} skipped."


def _studied(results: Results) -> list[str]:
    """Accuracy by sparsity of each method, recalibrated, or nothing."""
    rows = [row for row in _rows(results, "study") if row["question"].endswith(", recalibrated")]
    if not rows:
        return []
    sparsities = list(rows[0]["accuracy"])
    lines = [
        "", f"ResNet-18 on CIFAR-10, {rows[0].get('epochs')} epochs, one seed, test accuracy, BatchNorm recalibrated:", "",
        f"| method | {' | '.join(f'{100 * float(name):g} %' for name in sparsities)} |", f"|---|{'---|' * len(sparsities)}",
    ]  # fmt: skip
    for row in rows:
        cells = (f"{100 * row['accuracy'][name]:.1f}" if name in row["accuracy"] else "" for name in sparsities)
        lines.append(f"| {_cell(row['question'].partition(':')[0])} | {' | '.join(cells)} |")
    return lines


def section(results: Results | None) -> str:
    """What stands in the README."""
    if results is None:
        return NOTHING
    lines = [f"Measured by `make gpu` on {_where(results)}. {_suite(results)}{_note(results)}"]
    barred = [row for row in _rows(results, "speed") if row.get("met") is not None]
    if barred:
        lines += ["", "| what | ratio | bar | |", "|---|---|---|---|"]
        lines += [
            f"| {_cell(row['question'])} | {row['value']:.3g} | {row['bar']} | {_verdict(row)} |" for row in barred
        ]
    lines += _studied(results)
    undone = [f"{name} ({part['status']})" for name, part in results["parts"].items() if part["status"] != "done"]
    if undone:
        lines += ["", f"Not complete: {', '.join(undone)}."]
    return "\n".join([*lines, "", "Every figure: `benchmarks/README.md`."])


def table(results: Results | None) -> str:
    """What stands in `benchmarks/README.md`: every row of every part."""
    if results is None:
        return NOTHING
    lines = [
        f"On {_where(results)}.{_note(results)}",
        "",
        "| part | question | value | bar | | more |",
        "|---|---|---|---|---|---|",
    ]
    known = {"question", "value", "bar", "met", "text"}
    for part in results["parts"]:
        for row in _rows(results, part):
            value = f"{row['value']:.3g}" if "value" in row else ""
            more = ", ".join(f"{key} {item}" for key, item in row.items() if key not in known and item is not None)
            cells = (part, row["question"], value, row.get("bar", ""), _verdict(row), more)
            lines.append(f"| {' | '.join(map(_cell, cells))} |")
    return "\n".join(lines)


def filled(page: str, text: str) -> str:
    """`page` with `text` between its marks.

    >>> filled("a <!-- gpu begins --> old <!-- gpu ends --> z", "new")
    'a <!-- gpu begins -->\\nnew\\n<!-- gpu ends --> z'
    """
    before, begins, rest = page.partition(BEGIN)
    _, ends, after = rest.partition(END)
    if not (begins and ends):
        raise ValueError(f"the page has no {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def main() -> None:
    """Keep what is given, fill both pages."""
    if len(sys.argv) > 1:
        write_json(KEPT, measured(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))))
    results = load()
    for page, text in ((HERE.parents[1] / "README.md", section(results)), (HERE.parent / "README.md", table(results))):
        page.write_text(filled(page.read_text(encoding="utf-8"), text), encoding="utf-8")
        print(f"{page.name} of {page.parent.name}: {'filled' if results else 'nothing measured yet'}")


if __name__ == "__main__":
    main()

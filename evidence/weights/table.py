"""The tuning of the study on converged networks as a Markdown table, from its records: python evidence/weights/table.py DIR"""

from __future__ import annotations

import sys
from pathlib import Path

from trimtab.studies.records import RunRecord

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)


def row(record: RunRecord, split: str) -> str:
    """One network: dense, recalibrated at each sparsity, their mean; in %."""
    found = {
        round(one.sparsity, 2): 100 * one.accuracy
        for one in record.measured[split].rows
        if (one.score, one.scope) == ("magnitude", "global") and (one.recalibrated or one.sparsity == 0)
    }
    pruned = [found[sparsity] for sparsity in SPARSITIES]
    cells = [found[0.0], *pruned, sum(pruned) / len(pruned)]
    return f"| {record.label} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |"


def main(folder: Path, split: str = "validation") -> None:
    """Print the table of every record in `folder`."""
    print("| setting | dense | " + " | ".join(f"{100 * one:.0f} %" for one in SPARSITIES) + " | mean |")
    print("|---|" + "---|" * (len(SPARSITIES) + 2))
    for file in sorted(folder.glob("*/seed*.json")):
        print(row(RunRecord.read(file), split))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

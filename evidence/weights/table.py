"""The study on converged networks as Markdown from records: python evidence/weights/table.py DIR [SPLIT] [STATE] [A - B ...]"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from trimtab.studies.records import RunRecord
from trimtab.studies.statistics import estimate, paired_difference

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
Seeds = Mapping[int, Mapping[float, float]]


def measured(record: RunRecord, split: str, *, recalibrated: bool) -> dict[float, float]:
    """Accuracy in % by sparsity, and the mean of the pruned ones under -1."""
    found = {
        round(one.sparsity, 2): 100 * one.accuracy
        for one in record.measured[split].rows
        if (one.score, one.scope) == ("magnitude", "global") and one.recalibrated == recalibrated
    }
    dense = next(100 * one.accuracy for one in record.measured[split].rows if one.sparsity == 0)
    kept = {0.0: found.get(0.0, dense), **{sparsity: found[sparsity] for sparsity in SPARSITIES}}
    return kept | {-1.0: sum(found[sparsity] for sparsity in SPARSITIES) / len(SPARSITIES)}


def gathered(folder: Path, split: str, *, recalibrated: bool) -> dict[str, dict[int, dict[float, float]]]:
    """By label, then by seed."""
    found: dict[str, dict[int, dict[float, float]]] = {}
    for file in sorted(folder.glob("*/seed*.json")):
        record = RunRecord.read(file)
        if split in record.measured:
            seeds = found.setdefault(record.label, {})
            seeds[record.resolved.seed] = measured(record, split, recalibrated=recalibrated)
    return found


def line(label: str, seeds: Seeds) -> str:
    """Mean over the seeds and half its 95 % t interval."""
    cells = []
    for sparsity in (0.0, *SPARSITIES, -1.0):
        one = estimate(values[sparsity] for values in seeds.values())
        cells.append(f"{one.mean:.1f}" + ("" if one.half is None else f" ± {one.half:.1f}"))
    return f"| {label} | {len(seeds)} | " + " | ".join(cells) + " |"


def difference(own: str, other: str, found: Mapping[str, Seeds]) -> str:
    """Paired by seed."""
    cells = []
    for sparsity in (0.0, *SPARSITIES, -1.0):
        pairs = [[(seed, values[sparsity]) for seed, values in found[label].items()] for label in (own, other)]
        one = paired_difference(*pairs)
        cells.append("" if one is None else f"{one.mean:+.1f}" + ("" if one.half is None else f" ± {one.half:.1f}"))
    common = set(found[own]) & set(found[other])
    return f"| {own} - {other} | {len(common)} | " + " | ".join(cells) + " |"


def main(folder: Path, split: str = "validation", state: str = "recalibrated", *contrasts: str) -> None:
    """Print the table of every record in `folder`; a contrast is two labels with a minus between them."""
    found = gathered(folder, split, recalibrated=state == "recalibrated")
    print("| setting | seeds | dense | " + " | ".join(f"{100 * one:.0f} %" for one in SPARSITIES) + " | mean |")
    print("|---|---|" + "---|" * (len(SPARSITIES) + 2))
    for label, seeds in found.items():
        print(line(label, seeds))
    for contrast in contrasts:
        own, _, other = contrast.partition(" - ")
        if unknown := [label for label in (own, other) if label not in found]:
            sys.exit(f"no record of {unknown[0]!r} in {folder}; there are {', '.join(found)}")
        print(difference(own, other, found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

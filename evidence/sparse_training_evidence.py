"""Sparsity along training on CIFAR-10: the tables of docs/evidence/sparsity.md from the records of two studies.

trimtab compare --study evidence/sparsity/cifar.yaml --data.root CIFAR --records evidence/records/sparsity-cifar10 --out OUT
python evidence/sparse_training_evidence.py
"""

from __future__ import annotations

from pathlib import Path

from evidence_page import contrast_table, fill, spread, table

from trimtab.studies.contrasts import Contrast, judge
from trimtab.studies.records import RunRecord
from trimtab.studies.statistics import Entry
from trimtab.studies.statistics import table as entries_of
from trimtab.studies.summary import Row

ROOT = Path(__file__).parent.parent
OWN = ROOT / "evidence" / "records" / "sparsity-cifar10"
BESIDE = ROOT / "evidence" / "records" / "weights-study"
OTHERS = ("sgd, decay 1e-3", "progressive", "cram+", "l1+cram+")
SEEDS = (10, 11, 12)
POINTS = (0.875, 0.9, 0.9375, 0.95)
CONTRASTS = (
    Contrast(own="gradual 90", other="sgd, decay 1e-3", sparsity=0.9),
    Contrast(own="rigl 90", other="set 90", sparsity=0.9),
    Contrast(own="set 90", other="static 90", sparsity=0.9),
    Contrast(own="gradual 95", other="l1+cram+", sparsity=0.95),
)
LATER = (Contrast(own="rigl 95", other="set 95", sparsity=0.95),)
"""Added after the figures at 90 % were seen; judged apart."""
AGAIN = "sgd again"


def records(folder: Path, labels: tuple[str, ...] = ()) -> list[RunRecord]:
    """Of these seeds, and of these labels where some are given."""
    found = [RunRecord.read(file) for file in sorted(folder.rglob("seed*.json"))]
    return [one for one in found if one.resolved.seed in SEEDS and (not labels or one.label in labels)]


def rows_of(found: list[RunRecord]) -> list[Row]:
    """Measurements on the test split."""
    return [row for one in found for row in one.measured["test"].rows]


def reached(record: RunRecord) -> float:
    """Fraction of zeros that the network ended training with; 0 for a dense one."""
    last = record.metrics[-1]
    return next((float(value) for name, value in last.items() if name.endswith(".sparsity")), 0.0)


def qualities(found: list[RunRecord]) -> str:
    """Recalibrated accuracy of every method at every point."""
    entries = [entry for entry in entries_of(rows_of(found)) if entry.recalibrated]
    labels = list(dict.fromkeys([*OTHERS, *(one.label for one in found)]))

    def cell(label: str, point: float) -> str:
        near: list[Entry] = [one for one in entries if one.method == label and abs(one.sparsity - point) < 0.002]
        return spread(near[0], 100, 1) if near else ""

    lines = []
    for label in labels:
        own = [reached(one) for one in found if one.label == label]
        lines.append(
            [label, str(len(own)), f"{100 * sum(own) / len(own):.1f} %", *(cell(label, one) for one in (0.0, *POINTS))]
        )
    points = [f"{100 * point:g} %" for point in POINTS]
    return table(["accuracy in %, recalibrated", "seeds", "zeros when trained", "as trained", *points], lines)


def repeated(found: list[RunRecord]) -> str:
    """Whether the run that was done again is the study's own, bit for bit."""
    again = next((one for one in found if one.label == AGAIN), None)
    if again is None:
        return "not run"
    first = next(one for one in found if (one.label, one.resolved.seed) == (OTHERS[0], again.resolved.seed))
    same = [one.measured["test"].settings.get("network") for one in (again, first)]
    return "the same network, bit for bit" if same[0] == same[1] else "another network"


def main() -> None:
    """Fill the page."""
    found = records(BESIDE, OTHERS) + records(OWN)
    print("done again:", repeated(found))
    shown = [one for one in found if one.label != AGAIN]
    blocks = {"cifar": qualities(shown), "cifar-contrasts": contrast_table(judge(rows_of(shown), CONTRASTS))}
    if {one.own for one in LATER} <= {one.label for one in shown}:
        blocks["cifar-later"] = contrast_table(judge(rows_of(shown), LATER))
    fill(ROOT / "docs" / "evidence" / "sparsity.md", blocks)


if __name__ == "__main__":
    main()

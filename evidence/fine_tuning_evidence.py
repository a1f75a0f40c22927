"""Training on after pruning, on CIFAR-10: does the lever still pay? Plan: evidence/weights/README.md, 7.

python evidence/fine_tuning_evidence.py read runs/weights-study/runs    # what `trimtab prune --finetune 2` left there
python evidence/fine_tuning_evidence.py                                 # the tables of docs/evidence/weights.md from it
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from evidence_page import contrast_table, fill, spread, table

from trimtab.files import write_text
from trimtab.studies.contrasts import Contrast, judge
from trimtab.studies.prune_run import read_pruned
from trimtab.studies.statistics import Entry
from trimtab.studies.statistics import table as entries_of
from trimtab.studies.summary import Row

EVIDENCE = Path(__file__).parent.parent / "docs" / "evidence"
FIGURES = EVIDENCE / "weights-trained-on.json"
CONTRASTS = (
    Contrast(own="cram+", other="sgd, decay 1e-3", sparsity=0.95),
    Contrast(own="l1+cram+", other="sgd, decay 1e-3", sparsity=0.98),
)
LABELS = ("sgd, decay 1e-3", "cram+", "l1+cram+")
POINTS = (0.0, 0.95, 0.98)


def read(runs: Path) -> None:
    """The rows of every network that was trained on, and of the same ones before."""
    found = []
    for label in LABELS:
        for file in sorted((runs / label.replace(" ", "_")).glob("seed*/pruning-test-other.json")):
            found += [row.model_copy(update={"method": label}) for row in read_pruned(file).rows]
    rows = [row.model_dump(mode="json", exclude_defaults=True) for row in found]
    write_text(FIGURES, json.dumps({"rows": rows}, indent=1) + "\n")


def kept() -> list[Row]:
    """What was read."""
    return [Row.model_validate(row) for row in json.loads(FIGURES.read_text(encoding="utf-8"))["rows"]]


def qualities(rows: list[Row]) -> str:
    """Accuracy of every method at every point, recalibrated and trained on."""
    entries = entries_of(rows)

    def cell(label: str, point: float, *, trained: bool) -> str:
        near: list[Entry] = [
            one
            for one in entries
            if one.method == label
            and abs(one.sparsity - point) < 0.002
            and bool(one.finetuned) == trained
            and (trained or one.recalibrated)
        ]
        return spread(near[0], 100, 1) if near else ""

    states = (("recalibrated", False), ("trained on", True))
    lines = [
        [label, state, *(cell(label, point, trained=trained) for point in POINTS)]
        for label in LABELS
        for state, trained in states
    ]
    return table(["accuracy in %", "", "dense", "95 %", "98 %"], lines)


def contrasts(rows: list[Row]) -> str:
    """The two that were written down, of the networks trained on."""
    tuned = [row.model_copy(update={"finetuned": 0, "recalibrated": True}) for row in rows if row.finetuned]
    return contrast_table(
        judge(tuned, CONTRASTS), lambda one: f"{one.own} - {one.other} at {100 * one.sparsity:g} %, trained on"
    )


def main() -> None:
    """Read, or fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("read",))
    parser.add_argument("runs", nargs="?", type=Path)
    given = parser.parse_args()
    if given.what == "read":
        read(given.runs)
    rows = kept()
    fill(EVIDENCE / "weights.md", {"trained on": qualities(rows), "trained on contrasts": contrasts(rows)})


if __name__ == "__main__":
    main()

"""The study of Autoscale on networks that converge: from its run folders to the page, verdicts by the plan in README.md.

python evidence/gradients/table.py read RUNS ...     # folders of `trimtab compare --out` -> docs/evidence/autoscale.json
python evidence/gradients/table.py                   # the JSON file's figures into docs/evidence/gradients.md
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pandas as pd
from evidence_page import fill, spread, table
from gradients_evidence import PAGE, dynamics, lines, runs
from scipy import stats

from trimtab.files import write_text
from trimtab.observe import read_table
from trimtab.studies.contrasts import holm
from trimtab.studies.statistics import estimate

FIGURES = PAGE.parent / "autoscale.json"
CONTRASTS = {"cifar10-fast": ("autoscale", "centralize"), "cifar100-resnet20": ("autoscale",)}
"""What is judged against plain SGD on each network."""
SEEDS = 3
"""Fewer are shown and not judged."""
Row = Mapping[str, Any]


def read(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """One row for each finished run that was tested; of plain runs with what the tracker says."""
    found = []
    for folder, recipe, _ in runs(*folders):
        tested = folder / "pruning-test.json"
        if not tested.is_file():
            continue
        measured = json.loads(tested.read_text(encoding="utf-8"))["rows"]
        dense = next(row for row in measured if row["sparsity"] == 0 and not row["recalibrated"])
        transform = {"sgd": "none"}.get(folder.parent.name, folder.parent.name)  # the row's label in the study
        row: dict[str, Any] = {"network": recipe.name, "transform": transform, "seed": recipe.seed}
        row |= {"test_accuracy": dense["accuracy"], "last_epoch": lines(folder / "metrics.jsonl")[-1]}
        if transform == "none":
            tracked = read_table(folder / "gradients.parquet").to_pandas()
            row |= dynamics(tracked) | {"tenths": tenths(tracked)}
        found.append(row)
    return sorted(found, key=lambda row: (row["network"], row["transform"], row["seed"]))


def tenths(tracked: pd.DataFrame) -> list[float]:
    """Mean global standard deviation over the first and over the last tenth of the steps."""
    own = tracked[(tracked["kind"] == "gradients") & (tracked["layer"] == "(global)")].sort_values("step")["std"]
    tenth = max(1, len(own) // 10)
    return [float(own.iloc[:tenth].mean()), float(own.iloc[-tenth:].mean())]


def gaps(rows: Sequence[Row], network: str, transform: str) -> list[float]:
    """Test accuracy minus that of plain SGD, seed by seed."""
    own = {(row["transform"], row["seed"]): row["test_accuracy"] for row in rows if row["network"] == network}
    seeds = sorted(seed for name, seed in own if name == transform and ("none", seed) in own)
    return [own[transform, seed] - own["none", seed] for seed in seeds]


def chances(rows: Sequence[Row], network: str) -> dict[str, float]:
    """Corrected p of every contrast of a network that has the seeds for it."""
    found = {name: values for name in CONTRASTS[network] if len(values := gaps(rows, network, name)) >= SEEDS}
    plain = [float(stats.ttest_1samp(values, 0.0).pvalue) for values in found.values()]
    return dict(zip(found, holm(plain, len(CONTRASTS[network])), strict=True))


def accuracy(rows: Sequence[Row]) -> str:
    """The table of accuracies, and what is told apart."""
    cells = []
    for network, contrasts in CONTRASTS.items():
        corrected = chances(rows, network)
        for transform in ("none", *contrasts):
            own = [row["test_accuracy"] for row in rows if (row["network"], row["transform"]) == (network, transform)]
            if not own:
                continue
            over = gaps(rows, network, transform) if transform != "none" else []
            p = corrected.get(transform)
            verdict = "" if transform == "none" else "not judged" if p is None else "not told apart"
            if p is not None and p < 0.05:
                verdict = "holds" if sum(over) > 0 else "the reverse"
            shown = spread(estimate(over), 100, 2, signed=True) if over else ""
            mean, shown_p = spread(estimate(own), 100, 2), "" if p is None else f"{p:.3f}"
            cells.append([network, transform, str(len(own)), mean, shown, shown_p, verdict])
    head = ["network", "transform", "seeds", "test accuracy, %", "minus plain, points", "p (Holm)", "verdict"]
    return table(head, cells)


def falls(row: Row) -> bool:
    """Whether the global standard deviation of a run falls, as the plan says."""
    return bool(row["rank_correlation"] < -0.5 and row["tenths"][1] < row["tenths"][0])


def moves(rows: Sequence[Row]) -> str:
    """The table of dynamics of plain SGD."""
    cells = []
    for network in CONTRASTS:
        own = [row for row in rows if row["network"] == network and row["transform"] == "none"]
        if not own:
            continue
        judged = len(own) >= SEEDS
        cells.append(
            [
                network, str(len(own)), f"{own[0]['steps']:,}",
                ", ".join(f"{row['rank_correlation']:+.2f}" for row in own),
                ", ".join(f"{row['tenths'][1] / row['tenths'][0]:.2f}" for row in own),
                ("holds" if all(map(falls, own)) else "does not hold") if judged else "not judged",
                ", ".join(f"{row['ratio_of_layers']:.0f}" for row in own),
                ("holds" if all(row["ratio_of_layers"] > 10 for row in own) else "does not hold") if judged else "not judged",
            ]
        )  # fmt: skip
    head = [
        "network, plain SGD", "seeds", "steps", "rank correlation of the global std with the step, each seed",
        "last over first tenth", "it falls", "highest over lowest layer", "layers differ",
    ]  # fmt: skip
    return table(head, cells)


def main() -> None:
    """Read the runs, or fill the page."""
    match sys.argv[1:]:
        case ["read", *folders] if folders:
            found = read([Path(folder) for folder in folders])
            write_text(FIGURES, json.dumps(found, indent=1) + "\n")
            print(*(f"{row['network']}: {row['transform']} seed {row['seed']}" for row in found), sep="\n")
        case []:
            rows = json.loads(FIGURES.read_text(encoding="utf-8"))
            fill(PAGE, {"autoscale accuracy": accuracy(rows), "autoscale dynamics": moves(rows)})
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()

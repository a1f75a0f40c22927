"""ResNet-20 without half of its channels: accuracy after two epochs of training on, and latency before and after.

trimtab train cifar10-resnet20 --data.root CIFAR --epochs 12 --seed N --out runs/channels/seedN   # N = 20, 21, 22
python evidence/channels_evidence.py runs/channels --root CIFAR     # -> docs/evidence/sparsity-channels.json
python evidence/channels_evidence.py                                # prints the table of that file
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from evidence_page import spread, table
from torch import nn
from torch.nn import functional as F

from trimtab.datasets import Batches
from trimtab.deploy import remove_channels
from trimtab.files import write_text
from trimtab.pruning import recalibrate
from trimtab.runs.evaluation import evaluate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.statistics import estimate

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "sparsity-channels.json"
WAYS = (("channels", "magnitude"), ("multiply_adds", "magnitude"), ("channels", "bn_scale"))
COLUMNS = ("cut", "recalibrated", "trained on")


def train_on(model: nn.Module, batches: Batches, epochs: int, rate: float) -> None:
    """SGD with momentum 0.9 and weight decay 5e-4; the rate falls by a cosine to zero."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    model.train()
    for epoch in range(epochs):
        for images, targets in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(images), targets).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def measure(runs: Path, root: str, epochs: int, rate: float) -> None:
    """Each network without half of its channels, or of its multiply-adds."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for place in sorted(runs.glob("seed*")):
        folder = RunFolder(place)
        recipe = folder.recipe
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
        data = load_data(recipe)
        model = trained_model(folder, data).eval()
        test, train = batches_of(recipe, data, "test"), batches_of(recipe, data, "train")

        def accuracy(net: nn.Module, seen: Any = (test, data)) -> float:
            return 100 * evaluate(net, seen[0], seen[1].num_classes).accuracy

        dense = accuracy(model)
        for budget, score in WAYS:
            smaller = remove_channels(model, data.example(), 0.5, budget=budget, score=score)  # type: ignore[arg-type]
            row = {
                "seed": recipe.seed,
                "budget": budget,
                "score": score,
                "dense": dense,
                "cut": accuracy(smaller.model),
            }
            recalibrate(smaller.model, train.sample(20, recipe.seed))
            row["recalibrated"] = accuracy(smaller.model)
            train_on(smaller.model, train, epochs, rate)
            row |= {
                "trained on": accuracy(smaller.model),
                "epochs": epochs,
                "latency": smaller.latency(64, budget=3.0).ratio,
                "multiply_adds": smaller.multiply_adds[0] / smaller.multiply_adds[1],
                "parameters": smaller.parameters[0] / smaller.parameters[1],
            }
            rows.append(row)
            print(row, flush=True)
            write_text(FIGURES, json.dumps({"rows": rows}, indent=1) + "\n")


def tables() -> None:
    """The table, as Markdown."""
    rows = json.loads(FIGURES.read_text(encoding="utf-8"))["rows"]

    def mean(field: str, own: list[dict[str, Any]], digits: int = 1) -> str:
        return spread(estimate(row[field] for row in own), digits=digits)

    lines = [["dense", mean("dense", rows[:: len(WAYS)]), "", "", "1", "1"]]
    for budget, score in WAYS:
        own = [row for row in rows if (row["budget"], row["score"]) == (budget, score)]
        cells = [*(mean(name, own) for name in COLUMNS), *(mean(name, own, 2) for name in ("multiply_adds", "latency"))]
        lines.append([f"half of the {budget.replace('_', '-')}, {score}", *cells])
    print(table(["accuracy in %", *COLUMNS, "multiply-adds, times fewer", "batch 64, times faster"], lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path)
    parser.add_argument("--root", default="")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.02)
    given = parser.parse_args()
    if given.runs is not None:
        measure(given.runs, given.root, given.epochs, given.rate)
    tables()


if __name__ == "__main__":
    main()

"""ResNet-20 without half of its channels: accuracy as cut, recalibrated, after training on, and latency before and after.

python evidence/channels_evidence.py runs/channels --root CIFAR     # -> docs/evidence/sparsity-channels.json
python evidence/channels_evidence.py                                # the table of that file into docs/evidence/sparsity.md

The networks are those of evidence/sparsity/README.md. Those that are in the file already are left, so that seeds may come one
by one. Latency is kept in the file and not shown: it is for a quiet machine (`benchmarks/channels.py`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, spread, table
from torch import nn
from torch.nn import functional as F

from trimtab.datasets import Batches
from trimtab.deploy import remove_channels
from trimtab.files import write_text
from trimtab.pruning import recalibrate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.statistics import estimate, paired_difference

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


@torch.no_grad()
def accuracy_of(net: nn.Module, batches: Batches, images: int) -> float:
    """In per cent, over the first images."""
    net.eval()
    right = seen = 0
    for pictures, targets in batches.epoch(0):
        right += int((net(pictures).argmax(1) == targets).sum())
        seen += len(targets)
        if seen >= images:
            break
    return 100 * right / seen


def measure(runs: Path, root: str, epochs: int, rate: float, images: int) -> None:
    """Each network without half of its channels, or of its multiply-adds."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = kept()
    for place in sorted(runs.glob("seed*")):
        folder = RunFolder(place)
        recipe = folder.recipe
        if not folder.finished or recipe.seed in {row["seed"] for row in rows}:
            continue
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
        data = load_data(recipe)
        model = trained_model(folder, data).eval()
        test, train = batches_of(recipe, data, "test"), batches_of(recipe, data, "train")

        dense = accuracy_of(model, test, images)
        found: list[dict[str, Any]] = []
        for budget, score in WAYS:
            smaller = remove_channels(model, data.example(), 0.5, budget=budget, score=score)  # type: ignore[arg-type]
            row = {
                "seed": recipe.seed,
                "budget": budget,
                "score": score,
                "dense": dense,
                "cut": accuracy_of(smaller.model, test, images),
            }
            recalibrate(smaller.model, train.sample(20, recipe.seed))
            row["recalibrated"] = accuracy_of(smaller.model, test, images)
            train_on(smaller.model, train, epochs, rate)
            row |= {
                "trained on": accuracy_of(smaller.model, test, images),
                "trained": f"{recipe.epochs} epochs of {len(data.train):,} images, then {epochs}",
                "images": images,
                "latency": smaller.latency(64, budget=3.0).ratio,
                "multiply_adds": smaller.multiply_adds[0] / smaller.multiply_adds[1],
                "parameters": smaller.parameters[0] / smaller.parameters[1],
            }
            found.append(row)
            print(row, flush=True)
        rows += found
        write_text(FIGURES, json.dumps({"rows": rows}, indent=1) + "\n")


def kept() -> list[dict[str, Any]]:
    """What was measured before."""
    found: list[dict[str, Any]] = json.loads(FIGURES.read_text(encoding="utf-8"))["rows"] if FIGURES.is_file() else []
    return found


def tables() -> None:
    """The table into the page, with what is left after training on against the dense network, paired by seed."""
    rows = kept()

    def mean(field: str, own: list[dict[str, Any]], digits: int = 1) -> str:
        return spread(estimate(row[field] for row in own), digits=digits)

    lines = [["dense", mean("dense", rows[:: len(WAYS)]), "", "", "", "1"]]
    for budget, score in WAYS:
        own = [row for row in rows if (row["budget"], row["score"]) == (budget, score)]
        pairs = [[(row["seed"], row[field]) for row in own] for field in ("trained on", "dense")]
        cells = [*(mean(name, own) for name in COLUMNS), spread(paired_difference(*pairs), digits=1, signed=True)]
        lines.append([f"half of the {budget.replace('_', '-')}, {score}", *cells, mean("multiply_adds", own, 2)])
    head = [f"accuracy in %, {len({row['seed'] for row in rows})} seeds", *COLUMNS]
    head += ["trained on - dense", "multiply-adds, times fewer"]
    fill(FIGURES.with_name("sparsity.md"), {"channels": table(head, lines)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="?", type=Path)
    parser.add_argument("--root", default="")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=0.02)
    parser.add_argument("--images", type=int, default=10_000)
    given = parser.parse_args()
    if given.runs is not None:
        measure(given.runs, given.root, given.epochs, given.rate, given.images)
    tables()


if __name__ == "__main__":
    main()

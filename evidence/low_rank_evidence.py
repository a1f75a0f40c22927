"""ResNet-20 trained to low rank and decomposed, against the plain one decomposed to as many multiply-adds; nothing trained on.

python evidence/low_rank_evidence.py PLAIN LOW_RANK --root CIFAR    # folders of runs; see evidence/sparsity/README.md
python evidence/low_rank_evidence.py PLAIN LOW_RANK --root CIFAR --images 500   # on the first images alone
python evidence/low_rank_evidence.py tables                         # into docs/evidence/sparsity.md
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from channels_evidence import accuracy_of
from evidence_page import fill, spread, table
from torch import nn

from trimtab.deploy.channel_groups import counts_of
from trimtab.files import write_text
from trimtab.pruning import decompose, recalibrate
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.statistics import estimate, paired_difference

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "sparsity-low-rank.json"


def cut_to(model: nn.Module, example: torch.Tensor, limit: int) -> nn.Module:
    """The network decomposed at the largest energy, in thousandths, that leaves at most so many multiply-adds; by halving."""

    def at(level: int) -> nn.Module:
        try:
            return decompose(model, level / 1000).model
        except ValueError:  # two layers would not be smaller yet
            return model

    low, high = 1, 1000
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if counts_of(at(middle), example)[1] <= limit else (low, middle)
    return at(low)


def measure(plain: Path, low_rank: Path, root: str, images: int) -> None:
    """Each pair of networks that are finished."""
    torch.set_num_threads(1)
    rows = kept()
    for place in sorted(low_rank.glob("seed*")):
        folders = [RunFolder(plain / place.name), RunFolder(place)]
        if not all(folder.path.is_dir() and folder.finished for folder in folders):
            continue
        recipe, energy = folders[0].recipe, folders[1].recipe.low_rank.energy
        if any((row["energy"], row["seed"]) == (energy, recipe.seed) for row in rows):
            continue
        recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"root": root})})
        data = load_data(recipe)
        test, train = batches_of(recipe, data, "test"), batches_of(recipe, data, "train")
        dense, trained = (trained_model(folder, data).eval() for folder in folders)
        small = decompose(trained, 0.9999).model
        nets = {"dense": dense, "trained to low rank": small}
        nets["plain, decomposed"] = cut_to(dense, data.example(), counts_of(small, data.example())[1])
        row: dict[str, float] = {"energy": energy, "seed": recipe.seed}
        for name, net in nets.items():
            recalibrate(net, train.sample(20, recipe.seed))
            row[name] = accuracy_of(net, test, images)
        counts = [counts_of(net, data.example())[1] for net in (dense, small)]
        rows.append({**row, "times fewer multiply-adds": counts[0] / counts[1]})
        print(rows[-1], flush=True)
    write_text(FIGURES, json.dumps({"rows": rows}, indent=1) + "\n")


def kept() -> list[dict[str, float]]:
    """What was measured before."""
    found: list[dict[str, float]] = json.loads(FIGURES.read_text(encoding="utf-8"))["rows"] if FIGURES.is_file() else []
    return found


def tables() -> None:
    """Means of each energy, and what low rank costs against dense and gains against decomposing alone, into the page."""
    lines = []
    for energy in sorted({row["energy"] for row in kept()}):
        rows = [row for row in kept() if row["energy"] == energy]
        names = ("dense", "trained to low rank", "plain, decomposed")
        line = [
            f"{energy:g}",
            str(len(rows)),
            spread(estimate(row["times fewer multiply-adds"] for row in rows), digits=1),
        ]
        line += [spread(estimate(row[name] for row in rows), digits=1) for name in names]
        for other in ("dense", "plain, decomposed"):
            pairs = [[(int(row["seed"]), row[name]) for row in rows] for name in ("trained to low rank", other)]
            line.append(spread(paired_difference(*pairs), digits=1, signed=True))
        lines.append(line)
    head = [
        "energy",
        "seeds",
        "multiply-adds, times fewer",
        "dense",
        "trained to low rank",
        "plain, decomposed to as many",
    ]
    fill(FIGURES.with_name("sparsity.md"), {"low-rank": table([*head, "- dense", "- plain, decomposed"], lines)})


def main() -> None:
    if sys.argv[1:] == ["tables"]:
        tables()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plain", type=Path)
    parser.add_argument("low_rank", type=Path)
    parser.add_argument("--root", required=True)
    parser.add_argument("--images", type=int, default=10_000)
    given = parser.parse_args()
    measure(given.plain, given.low_rank, given.root, given.images)


if __name__ == "__main__":
    main()

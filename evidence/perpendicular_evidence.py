"""Modular addition with and without PerpendicularGradient: does a network without weight decay learn the rule?

python evidence/perpendicular_evidence.py             # trains both, three seeds -> docs/evidence/perpendicular.json
python evidence/perpendicular_evidence.py tables      # the JSON file's figures into the page
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, table
from torch import Tensor, nn

import trimtab
from trimtab.files import write_text
from trimtab.gradients import PerpendicularGradient

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "perpendicular.json"
PRIME, FRACTION, WIDTH, EPOCHS, EVERY = 113, 0.4, 200, 160, 20


def pairs(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(a, b) one-hot and (a + b) mod p, split at random into training and test part."""
    a, b = torch.meshgrid(torch.arange(PRIME), torch.arange(PRIME), indexing="ij")
    inputs = torch.cat([nn.functional.one_hot(each.flatten(), PRIME) for each in (a, b)], 1).float()
    order = torch.randperm(PRIME**2, generator=torch.Generator().manual_seed(seed))
    cut = int(FRACTION * PRIME**2)
    labels = ((a + b) % PRIME).flatten()
    return inputs[order[:cut]], labels[order[:cut]], inputs[order[cut:]], labels[order[cut:]]


def train(seed: int, *, lever: bool) -> list[dict[str, Any]]:
    """Accuracies every 20 epochs of full-batch AdamW."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(2 * PRIME, WIDTH, bias=False), nn.ReLU(), nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU(),
        nn.Linear(WIDTH, PRIME, bias=False),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2, betas=(0.9, 0.99), weight_decay=0.0)
    if lever:
        trimtab.attach(optimizer, PerpendicularGradient(), model=net)
    inputs, labels, test_inputs, test_labels = pairs(seed)
    lines = []
    for epoch in range(1, EPOCHS + 1):
        optimizer.zero_grad()
        scores = net(inputs)
        nn.functional.cross_entropy(scores, labels).backward()
        optimizer.step()
        if epoch % EVERY == 0:
            with torch.no_grad():
                tested = float((net(test_inputs).argmax(1) == test_labels).float().mean())
            lines.append({"epoch": epoch, "train": float((scores.argmax(1) == labels).float().mean()), "test": tested})
    return lines


def tables() -> None:
    """The figures of the JSON file into the page."""
    runs = json.loads(FIGURES.read_text(encoding="utf-8"))["runs"]
    shown = [80, 100, 120, 140, 160]
    rows = []
    for lever, name in ((False, "AdamW"), (True, "AdamW, PerpendicularGradient")):
        own = [{line["epoch"]: line for line in run["epochs"]} for run in runs if run["perpendicular"] is lever]
        cells = [", ".join(f"{seed[epoch]['test']:.3f}" for seed in own) for epoch in shown]
        rows.append([name, *cells, ", ".join(f"{seed[EPOCHS]['train']:.3f}" for seed in own)])
    head = ["test accuracy", *(f"epoch {epoch}" for epoch in shown), f"training, {EPOCHS}"]
    fill(FIGURES.with_suffix(".md"), {"accuracy": table(head, rows)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", nargs="?", choices=["train", "tables"], default="train")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if arguments.part == "tables":
        return tables()
    torch.set_num_threads(1)
    runs = []
    for seed in arguments.seeds:
        for lever in (False, True):
            started = time.process_time()
            lines = train(seed, lever=lever)
            runs.append({"seed": seed, "perpendicular": lever, "epochs": lines})
            spent = time.process_time() - started
            print(f"seed {seed}, {'with' if lever else 'without'}: {lines[-1]}, {spent:.0f} CPU s", flush=True)
    write_text(FIGURES, json.dumps({"task": f"(a + b) mod {PRIME}", "runs": runs}, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()

"""One step goes wrong by a factor of 1,000: which lever saves the run?

python evidence/spike_evidence.py             # all runs, three seeds -> docs/evidence/spikes.json (some minutes)
python evidence/spike_evidence.py tables      # the JSON file's figures into the page
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from evidence_page import fill, mean_and_range, table
from torch import Tensor, nn

import trimtab
from trimtab.files import write_text
from trimtab.gradients import AdaGC, ClipNorm, NormGrowthLimiter, ZClip
from trimtab.optimizers import ConvergenceRadius, SpikeGuard
from trimtab.parameters import Rule

FIGURES = Path(__file__).parent.parent / "docs" / "evidence" / "spikes.json"
STEPS, AT, SOON, BATCH, FACTOR, SEEDS = 200, 50, 60, 64, 1000.0, (0, 1, 2)
SPIKES = ("rate", "loss")
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda net: torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
    "Adam": lambda net: torch.optim.Adam(net.parameters(), lr=1e-3),
}
LEVERS: dict[str, Callable[[], Any] | None] = {
    "no spike": None,
    "nothing": None,
    "ClipNorm, 1": lambda: ClipNorm(1.0),
    "NormGrowthLimiter": NormGrowthLimiter,
    "NormGrowthLimiter, biases too": lambda: NormGrowthLimiter(rule=Rule(min_ndim=0)),
    "ZClip": lambda: ZClip(max_norm=None),
    "AdaGC": lambda: AdaGC(start=25),
    "ConvergenceRadius": ConvergenceRadius,
    "SpikeGuard, skip": lambda: SpikeGuard("skip", warmup=25),
}


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test part of scikit-learn's digits."""
    from sklearn.datasets import load_digits

    data = load_digits()
    images, labels = torch.tensor(data.data, dtype=torch.float32) / 16, torch.tensor(data.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return images[order[:1200]], labels[order[:1200]], images[order[1200:]], labels[order[1200:]]


def run(optimizer_name: str, lever: str, spike: str, seed: int) -> dict[str, Any]:
    """Test accuracy ten steps after the spike and in the end."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    optimizer = OPTIMIZERS[optimizer_name](net)
    make = LEVERS[lever]
    acting = None if make is None else make()
    if acting is not None:
        trimtab.attach(optimizer, acting, model=net)
    images, labels, test_images, test_labels = digits(seed)
    draws, accuracy = torch.Generator().manual_seed(seed), []
    for step in range(STEPS):
        at = torch.randint(0, len(labels), (BATCH,), generator=draws)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images[at]), labels[at])
        if isinstance(acting, SpikeGuard):
            acting.see(loss)
        hit = step == AT and lever != "no spike"
        (loss * (FACTOR if hit and spike == "loss" else 1.0)).backward()
        rate = optimizer.param_groups[0]["lr"]
        optimizer.param_groups[0]["lr"] = rate * (FACTOR if hit and spike == "rate" else 1.0)
        optimizer.step()
        optimizer.param_groups[0]["lr"] = rate
        if step + 1 in (SOON, STEPS):
            with torch.no_grad():
                accuracy.append(float((net(test_images).argmax(1) == test_labels).float().mean()))
    return {
        "optimizer": optimizer_name, "lever": lever, "spike": spike, "seed": seed, "soon": accuracy[0], "end": accuracy[1],
    }  # fmt: skip


def tables() -> None:
    """The figures of the JSON file into the page."""
    runs = json.loads(FIGURES.read_text(encoding="utf-8"))["runs"]
    blocks = {}
    for spike in SPIKES:
        rows = []
        for lever in LEVERS:
            cells = []
            for name in OPTIMIZERS:
                own = [one for one in runs if (one["optimizer"], one["lever"], one["spike"]) == (name, lever, spike)]
                cells += [mean_and_range([one[which] for one in own]) for which in ("soon", "end")]
            rows.append([lever, *cells])
        head = ["lever", *(f"{name}, {when}" for name in OPTIMIZERS for when in (f"step {SOON}", f"step {STEPS}"))]
        blocks[spike] = table(head, rows)
    fill(FIGURES.with_suffix(".md"), blocks)


def main() -> None:
    """Measure, or write the page's tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=("measure", "tables"), default="measure")
    if parser.parse_args().what == "tables":
        return tables()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    started = time.process_time()
    runs = [
        run(name, lever, spike, seed) for name in OPTIMIZERS for lever in LEVERS for spike in SPIKES for seed in SEEDS
    ]
    spent = round(time.process_time() - started, 1)
    write_text(
        FIGURES, json.dumps({"runs": runs, "torch": torch.__version__, "process_seconds": spent}, indent=1) + "\n"
    )
    return tables()


if __name__ == "__main__":
    main()

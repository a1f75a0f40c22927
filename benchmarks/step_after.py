"""What the levers that act after the step add to it: Concentrate, ProximalL1, EMA and MeanWeights against plain SGD."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from harness import cpu_ratio_in_turns, record, training_step

from trimtab import models
from trimtab.averaging import EMA, MeanWeights
from trimtab.penalties import Concentrate, ProximalL1

BATCH = 64
REPEATS = {"resnet20": 30, "resnet18": 8}
LEVERS: dict[str, tuple[Callable[[], Any], float]] = {
    "Concentrate": (lambda: Concentrate(0.1), 1.03),
    "Concentrate by layer": (lambda: Concentrate(0.1, "layer"), 1.03),
    "ProximalL1": (lambda: ProximalL1(1e-4), 1.03),
    "EMA": (EMA, 1.03),
    "MeanWeights": (lambda: MeanWeights(start=0), 1.03),
}


def measure(name: str, repeats: int) -> list[dict[str, Any]]:
    torch.manual_seed(0)
    model = models.create(name, num_classes=10)
    rows = []
    for label, (make, bar) in LEVERS.items():
        ratio, least = cpu_ratio_in_turns(
            training_step(model, None, BATCH), training_step(model, make(), BATCH), repeats
        )
        rows.append(
            {
                "question": f"{name}, batch {BATCH}: step with {label} / plain SGD step",
                "ratio": ratio,
                "bar": f"<= {bar:g}",
                "met": ratio <= bar,
                "ratio_of_least": least,
            }
        )
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", choices=REPEATS, default=[*REPEATS])
    torch.set_num_threads(1)
    record("step_after", [row for name in parser.parse_args().networks for row in measure(name, REPEATS[name])])

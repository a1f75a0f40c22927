"""What do looks at bearing add to a run, at the default that may cost 3 %? python benchmarks/bearing.py [CIFAR]

Processor seconds of the looks (every state, BatchNorm's re-estimation, the forwards of the critical learning rate) over those
of the rest of the run, within one run each, so that a busy machine meets both alike. With the folder of CIFAR-10 also
`cifar10-fast` on 12,000 of its images.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import record

from trimtab.runs import bearing
from trimtab.runs.recipe import Recipe, load_recipe
from trimtab.runs.training import train


class Clock:
    """Processor seconds spent in the calls of functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with what its calls take added up."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.process_time() - began

        return timed


def cost(recipe: Recipe) -> tuple[float, float, int]:
    """Run with looks over run without, as measured and as counted beforehand; and how many looks there were."""
    clock = Clock()
    own, forwards = bearing.Bearing.measure, bearing.critical_factor
    bearing.Bearing.measure = clock.around(own)  # type: ignore[method-assign]
    bearing.critical_factor = clock.around(forwards)
    try:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            run = train(recipe, Path(folder) / "run")
            whole = time.process_time() - began
            info = run.info()["bearing"]
    finally:
        bearing.Bearing.measure, bearing.critical_factor = own, forwards  # type: ignore[method-assign]
    return whole / (whole - clock.seconds), 1 + info["cost"], info["looks"]


def main() -> None:
    torch.set_num_threads(1)
    recipes = {"digits, 20 epochs": load_recipe("digits").with_settings({"track": ["bearing"]})}
    if len(sys.argv) > 1:
        settings = {"track": ["bearing"], "data.root": sys.argv[1], "data.limit_train": 12_000}
        settings |= {"precision.autocast": "bf16"}
        recipes["cifar10-fast, 8 epochs of 12,000 images"] = load_recipe("cifar10-fast").with_settings(settings)
    rows = []
    for name, recipe in recipes.items():
        measured, counted, looks = cost(recipe)
        rows.append(
            {
                "question": f"{name}: run with looks at bearing over without, processor time ({looks} of them)",
                "ratio": measured, "bar": "<= 1.03", "met": measured <= 1.03, "counted": counted, "looks": looks,
            }
        )  # fmt: skip
    record("bearing", rows)


if __name__ == "__main__":
    main()

"""What a step of each method costs, measured interleaved in one process on the recipe's own network and data."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trimtab.runs.parallel import launch
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training_run import TrainingRun
from trimtab.studies.fine_tuning import plain as without_levers
from trimtab.studies.summary import Cost


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    state = optimizer.state_dict()["state"]
    return sum(
        value.numel() * value.element_size()
        for values in state.values()
        if isinstance(values, dict)
        for value in values.values()
        if isinstance(value, Tensor)
    )


def measure_costs(recipes: Sequence[tuple[str, Recipe]], *, steps: int = 20, warm_up: int = 3) -> list[Cost]:
    """Median over interleaved steps of each method's time relative to its plain base optimizer's.

    Args:
        recipes: (label, recipe) of each method; all on the same network and data.
        steps: counted steps of each.
        warm_up: steps of each before counting.

    Returns:
        One `Cost` per label: the ratio of step times (median of paired ratios) and of optimizer state.
    """
    if not recipes:
        return []
    plain = {label: without_levers(recipe) for label, recipe in recipes}
    bases = {label: f"plain {plain[label].method}" for label in plain}
    with tempfile.TemporaryDirectory() as scratch:
        devices = launch(recipes[0][1])
        runs: dict[str, TrainingRun] = {}
        for label, recipe in recipes:
            if bases[label] not in runs:
                runs[bases[label]] = TrainingRun(plain[label], RunFolder(Path(scratch)), devices)
            if not recipe.is_plain:  # a plain optimizer costs 1 by definition
                runs[label] = TrainingRun(recipe.model_copy(update={"track": ()}), RunFolder(Path(scratch)), devices)
        seconds: dict[str, list[float]] = {label: [] for label in runs}
        for run in runs.values():
            run.stepper.set_learning_rate(0)
        first = next(next(iter(runs.values())).train_batches.epoch(0))
        for number in range(warm_up + steps):
            for label, run in runs.items():
                run.model.train()
                started = time.perf_counter()
                run.stepper.step([first] * run.recipe.accumulate)
                if devices.device.type == "cuda":
                    torch.cuda.synchronize()
                if number >= warm_up:
                    seconds[label].append(time.perf_counter() - started)
        states = {label: _state_bytes(run.steering.optimizer) for label, run in runs.items()}
        return [
            Cost(
                method=label,
                ratio=statistics.median(
                    own / base for own, base in zip(seconds[label], seconds[bases[label]], strict=True)
                ),
                extra_state_ratio=states[label] / states[bases[label]] if states[bases[label]] else 1.0,
            )
            if label in runs
            else Cost(method=label, ratio=1.0, extra_state_ratio=1.0)
            for label, _ in recipes
        ]

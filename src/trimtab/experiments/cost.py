"""What a step of each method costs, measured interleaved in one process on the recipe's own network and data."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from trimtab.experiments.methods import METHODS
from trimtab.experiments.parallel import launch
from trimtab.experiments.recipe import Recipe
from trimtab.experiments.run_folder import RunFolder, training_identity
from trimtab.experiments.summary import Cost
from trimtab.experiments.training import TrainingRun


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
    plain = recipes[0][1].model_copy(
        update={"method": METHODS[recipes[0][1].method].optimizer or recipes[0][1].optimizer}
    )
    with tempfile.TemporaryDirectory() as scratch:
        devices = launch(plain)
        runs: dict[str, TrainingRun] = {"": TrainingRun(plain, RunFolder(Path(scratch)), devices)}
        for label, recipe in recipes:
            if training_identity(recipe) != training_identity(
                plain
            ):  # the plain optimizer itself costs 1 by definition
                runs[label] = TrainingRun(recipe, RunFolder(Path(scratch)), devices)
        seconds: dict[str, list[float]] = {label: [] for label in runs}
        first = next(runs[""].train_batches.epoch(0))
        for number in range(warm_up + steps):
            for label, run in runs.items():
                run.model.train()
                started = time.perf_counter()
                run._step([first] * run.recipe.accumulate)
                if devices.device.type == "cuda":
                    torch.cuda.synchronize()
                if number >= warm_up:
                    seconds[label].append(time.perf_counter() - started)
        base_state = _state_bytes(runs[""].steering.base)
        return [
            Cost(
                method=label,
                ratio=statistics.median(own / base for own, base in zip(seconds[label], seconds[""], strict=True)),
                extra_state_ratio=_state_bytes(runs[label].steering.optimizer) / base_state if base_state else 1.0,
            )
            if label in runs
            else Cost(method=label, ratio=1.0, extra_state_ratio=1.0)
            for label, _ in recipes
        ]

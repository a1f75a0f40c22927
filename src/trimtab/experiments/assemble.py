"""Gather the runs of a study into one `Summary`."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from trimtab.deploy import measure_linear
from trimtab.experiments.headline import headline
from trimtab.experiments.machine import hardware, versions
from trimtab.experiments.prune_run import PrunedRun, Split
from trimtab.experiments.recipe import Recipe
from trimtab.experiments.run_folder import RunFolder
from trimtab.experiments.summary import Cost, Histogram, Latency, Row, Run, Storage, Summary
from trimtab.experiments.training import load_data
from trimtab.files import write_text


def measure_latencies(
    shapes: Sequence[tuple[int, int]] = ((1024, 1024),),
    sparsities: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.98),
    batches: Sequence[int] = (1, 64),
) -> list[Latency]:
    """Dense against CSR Linear layers on this machine, interleaved; above 1 the sparse one is faster."""
    found = []
    for inputs, outputs in shapes:
        for batch in batches:
            for sparsity in sparsities:
                ratio = measure_linear(inputs, outputs, sparsity, batch)
                found.append(
                    Latency(
                        what=f"Linear {inputs} to {outputs}",
                        sparsity=sparsity,
                        batch=batch,
                        ratio=ratio,
                        faster=ratio > 1.0,
                    )
                )
    return found


def _pruned(folder: RunFolder, split: Split) -> PrunedRun | None:
    file = folder.path / f"pruning-{split}.json"
    return PrunedRun.model_validate_json(file.read_text(encoding="utf-8")) if file.is_file() else None


def _notes(unfinished: Sequence[str], recipe: Recipe, split: Split) -> list[str]:
    notes = [f"Every network was pruned once, without retraining, and measured on the {split} split."]
    if split == "test":
        notes.append("Settings were not chosen on the test split.")
    notes.append(
        "Unstructured zeros make the file smaller; convolutions do not run faster for them on common hardware. "
        "The latency figure says where a Linear layer does."
    )
    if recipe.pruning.score != "magnitude" or recipe.pruning.scope != "global":
        notes.append(f"Pruned by {recipe.pruning.score}, scope {recipe.pruning.scope}.")
    if unfinished:
        notes.append(f"Not finished and left out: {', '.join(unfinished)}.")
    return notes


def assemble(
    folders: Sequence[RunFolder],
    root: Path,
    *,
    name: str | None = None,
    split: Split = "test",
    costs: Sequence[Cost] = (),
    latencies: Sequence[Latency] = (),
) -> Summary:
    """One summary of all finished and pruned runs among `folders`.

    Args:
        folders: runs of one task; different tasks in one table would compare nothing.
        root: folder that the summary's paths are relative to.
        name: title; default the first recipe's name.
        split: which measurements to gather.
        costs, latencies: measured elsewhere.

    Raises:
        ValueError: no run is finished and pruned, or the runs are of different data sets.
    """
    runs: list[Run] = []
    rows: list[Row] = []
    histograms: list[Histogram] = []
    storage: list[Storage] = []
    unfinished: list[str] = []
    recipes: list[Recipe] = []
    for folder in folders:
        pruned, info = _pruned(folder, split), folder.info()
        if pruned is None or not folder.finished:
            unfinished.append(str(folder.path.relative_to(root) if folder.path.is_relative_to(root) else folder.path))
            continue
        recipe = folder.recipe
        recipes.append(recipe)
        label = pruned.histogram.method
        rows += pruned.rows
        histograms.append(pruned.histogram)
        storage += pruned.storage if not any(item.method == label for item in storage) else []
        runs.append(
            Run(
                method=label,
                seed=recipe.seed,
                folder=str(folder.path.relative_to(root)) if folder.path.is_relative_to(root) else folder.path.name,
                epochs=info["epochs"],
                steps=info["steps"],
                train_seconds=info["train_seconds"],
                step_seconds=info["step_seconds"],
                train_loss=info["train_loss"],
                validation_accuracy=info["validation_accuracy"],
            )
        )
    if not runs:
        raise ValueError(
            f"no finished and pruned run under {root} ({len(unfinished)} unfinished); train and prune first"
        )
    names = sorted({recipe.data.name for recipe in recipes})
    if len(names) > 1:
        raise ValueError(f"the runs are of different data sets ({', '.join(names)}); report them apart")
    twice = {(run.method, run.seed) for run in runs}
    if len(twice) < len(runs):
        raise ValueError("the same method and seed occurs in several of these folders; report them apart")
    data = load_data(recipes[0])
    metric: Literal["accuracy", "dice"] = "dice" if data.task == "segmentation" else "accuracy"
    chance = 0.0 if data.task == "segmentation" else 1 / data.num_classes
    baseline = "sgd" if any(run.method == "sgd" for run in runs) else runs[0].method
    return Summary(
        name=name or recipes[0].name,
        headline=headline(rows, metric, chance, baseline),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        metric=metric,
        chance=chance,
        recipe=recipes[0].model_dump(mode="json"),
        versions=versions(),
        hardware=hardware(),
        runs=runs,
        rows=rows,
        histograms=histograms,
        costs=list(costs),
        latencies=list(latencies),
        storage=storage,
        notes=[*_notes(unfinished, recipes[0], split), *data.notes],
    )


def keep_measurements(folder: Path, costs: Sequence[Cost], latencies: Sequence[Latency]) -> None:
    """Write costs and latencies beside the runs, so that `trimtab report` need not measure them again."""
    data = {"costs": [item.model_dump() for item in costs], "latencies": [item.model_dump() for item in latencies]}
    write_text(folder / "measurements.json", json.dumps(data, indent=1) + "\n")


def kept_measurements(folder: Path) -> tuple[list[Cost], list[Latency]]:
    """What `keep_measurements` wrote, or nothing."""
    file = folder / "measurements.json"
    if not file.is_file():
        return [], []
    data = json.loads(file.read_text(encoding="utf-8"))
    return [Cost(**item) for item in data["costs"]], [Latency(**item) for item in data["latencies"]]

"""Gather the runs of a study into one `Summary`."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from trimtab.deploy import measure_linear
from trimtab.files import write_text
from trimtab.inputs import named, read_json_mapping, shortened
from trimtab.runs.machine import hardware, versions
from trimtab.runs.recipe import SECTIONS, Recipe
from trimtab.runs.run_folder import INCIDENTAL, RunFolder
from trimtab.studies.contrasts import Contrast, judge
from trimtab.studies.file_forms import files_headline, places
from trimtab.studies.gradients.dynamics import without_curves
from trimtab.studies.plan import PlannedRun, in_words, missing_runs
from trimtab.studies.prune_run import PrunedRun, Split
from trimtab.studies.records import RunRecord, folder_record, record_of
from trimtab.studies.summary import (
    BearingTrack,
    Cost,
    CurvatureTrack,
    Dynamics,
    FileRow,
    Histogram,
    Latency,
    Row,
    Run,
    Storage,
    Summary,
)
from trimtab.studies.weights.headline import headline

OF_THE_METHOD = {"method", "levers", "suffixed", "seed", "optimizer", "transforms", *SECTIONS}
"""Recipe fields in which the runs of one table may differ."""


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


def _shared(recipe: Recipe, pruned: PrunedRun) -> dict[str, object]:
    """What runs of one table must share: everything but method, seed, their settings and what the study varies."""
    data = recipe.model_dump(mode="json", exclude=INCIDENTAL | OF_THE_METHOD)
    data["data"].pop("root")
    apart = {"label", "network", *(() if pruned.settings.get("finetune") else ("finetune", "finetune_rate"))}
    flat: dict[str, object] = {key: item for key, item in pruned.settings.items() if key not in apart}
    for name, value in data.items():
        inner = {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
        flat |= {key: item for key, item in inner.items() if key not in pruned.varied}
    return flat


def _check_comparable(kept: Mapping[Path, tuple[Recipe, PrunedRun]]) -> None:
    (first, whole), *others = kept.items()
    one = _shared(*whole)
    for path, other in others:
        two = _shared(*other)
        differing = sorted(key for key in one.keys() & two.keys() if one[key] != two[key])
        if differing:
            changes = "; ".join(f"{key}: {one[key]!r} and {two[key]!r}" for key in differing)
            raise ValueError(f"{first} and {path} cannot stand in one table ({changes}); report them apart")


def _notes(kept: Sequence[RunRecord], split: Split) -> list[str]:
    notes = [f"Every network was pruned once, without retraining, and measured on the {split} split."]
    for epochs, rate in sorted({
        (row.finetuned, record.measured[split].settings["finetune_rate"])
        for record in kept for row in record.measured[split].rows if row.finetuned
    }):  # fmt: skip
        notes.append(
            f"Fine-tuned: trained on for {epochs} epoch{'s' * (epochs > 1)} after pruning, the removed weights kept at "
            f"zero, by the base optimizer without levers; its learning rate falls from {rate:g} of the recipe's by a cosine to "
            "zero."
        )
    labels = {record.label: record.resolved.method for record in kept}
    if split == "test" and len(set(labels.values())) < len(labels):
        notes.append(
            "Several settings of one method are shown on the test split: reading off the best one is choosing on it."
        )
    notes.append(
        "Unstructured zeros make the file smaller; convolutions do not run faster for them on common hardware. "
        "The latency figure says where a Linear layer does."
    )
    settings = kept[0].measured[split].settings
    if (settings["score"], settings["scope"], settings["pattern"]) != ("magnitude", "global", "unstructured"):
        notes.append(f"Pruned by {settings['score']}, scope {settings['scope']}, pattern {settings['pattern']}.")
    return notes


def assemble(
    folders: Sequence[RunFolder],
    root: Path,
    *,
    name: str | None = None,
    split: Split = "test",
    costs: Sequence[Cost] = (),
    latencies: Sequence[Latency] = (),
    measured: Mapping[Path, PrunedRun] | None = None,
    planned: Mapping[Path, PlannedRun] | None = None,
    records: Mapping[Path, RunRecord] | None = None,
    contrasts: Sequence[Contrast] = (),
) -> Summary:
    """One summary of all finished and pruned runs among `folders`; those that are missing are named in it.

    Args:
        folders: runs of one task; different tasks in one table would compare nothing.
        root: folder that the summary's paths are relative to.
        name: title; default the first recipe's name.
        split: which measurements to gather.
        costs, latencies: measured elsewhere.
        measured: prunings to show instead of those kept in the run folders, by folder.
        planned: runs that were asked for, as `planned_runs` gives them.
        contrasts: what is judged, as `planned_contrasts` gives it.
        records: of runs, by the folder that each has or had; where a folder and a record are of one run, the folder counts.

    Raises:
        ValueError: no run is finished and pruned, or the runs differ in more than method, seed and what is varied.
    """
    found: dict[Path, RunRecord | None] = dict(records or {})
    for folder in folders:
        pruned = (measured or {}).get(folder.path)
        record = folder_record(folder, split) if pruned is None else record_of(folder, {split: pruned})
        found[folder.path] = record or found.get(folder.path)
    ordered = sorted(found.items()) if records else found.items()
    kept = {path: record for path, record in ordered if record is not None and split in record.measured}
    missing = missing_runs(folders, planned or {}, list(kept), root)
    if not kept:
        listed = shortened("; ".join(map(str, missing)), 400)
        raise ValueError(f"no finished and pruned run under {root} ({listed}); train and prune first")
    _check_comparable({path: (record.resolved, record.measured[split]) for path, record in kept.items()})
    runs: list[Run] = []
    rows: list[Row] = []
    files: list[FileRow] = []
    histograms: list[Histogram] = []
    storage: list[Storage] = []
    dynamics: list[Dynamics] = []
    curvature: list[CurvatureTrack] = []
    bearing: list[BearingTrack] = []
    for path, record in kept.items():
        pruned = record.measured[split]
        rows += pruned.rows
        files += pruned.files
        histograms.append(pruned.histogram)
        if record.dynamics is not None:
            repeated = any(item.method == record.label for item in dynamics)
            dynamics.append(without_curves(record.dynamics) if repeated else record.dynamics)
        if record.curvature is not None:
            curvature.append(record.curvature)
        if record.bearing is not None:
            bearing.append(record.bearing)
        storage += pruned.storage if not any(item.method == record.label for item in storage) else []
        runs.append(record.run(os.path.relpath(path, root)))
    twice = {(run.method, run.seed) for run in runs}
    if len(twice) < len(runs):
        raise ValueError("the same method and seed occurs in several of these folders; report them apart")
    first = next(iter(kept.values()))
    recipe = first.resolved
    metric, chance, remarks = first.task()
    plain = [record.label for record in kept.values() if record.resolved.is_plain]
    baseline = "sgd" if "sgd" in plain else (plain or [runs[0].method])[0]
    summary = Summary(
        name=name or recipe.name,
        headline=". ".join(filter(None, (in_words(missing, len(runs)), headline(rows, metric.name, chance, baseline)))),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        metric=metric.name,
        chance=chance,
        recipe=recipe.model_dump(mode="json"),
        versions=versions(),
        hardware=hardware(),
        runs=runs,
        missing=missing,
        rows=rows,
        contrasts=judge(rows, contrasts, metric),
        histograms=histograms,
        costs=list(costs),
        latencies=list(latencies),
        storage=storage,
        files=files,
        dynamics=dynamics,
        curvature=curvature,
        bearing=bearing,
        notes=[*_notes(list(kept.values()), split), *remarks],
    )
    in_bytes = files_headline(places(summary), baseline, metric)
    return summary.model_copy(update={"headline": f"{summary.headline} {in_bytes}."}) if in_bytes else summary


def keep_measurements(folder: Path, costs: Sequence[Cost], latencies: Sequence[Latency]) -> None:
    """Write costs and latencies beside the runs, so that `trimtab report` need not measure them again."""
    data = {"costs": [item.model_dump() for item in costs], "latencies": [item.model_dump() for item in latencies]}
    write_text(folder / "measurements.json", json.dumps(data, indent=1) + "\n")


def kept_measurements(folder: Path) -> tuple[list[Cost], list[Latency]]:
    """What `keep_measurements` wrote, or nothing."""
    file = folder / "measurements.json"
    if not file.is_file():
        return [], []
    with named(file, "is damaged; delete it to measure again"):
        data = read_json_mapping(file)
        return [Cost(**item) for item in data["costs"]], [Latency(**item) for item in data["latencies"]]

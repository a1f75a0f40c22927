"""What `compare`, `demo` and `report` do once the runs are there: summary, report, the best network as a file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from trimtab.cli.console import console, errors
from trimtab.cli.progress import study_progress
from trimtab.deploy import save_sparse
from trimtab.pruning import one_shot, recalibrate
from trimtab.report import render
from trimtab.report.weights.terminal import terminal_tables
from trimtab.runs.loading import batches_of, load_data, trained_model
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.studies import statistics
from trimtab.studies.comparison import Outcome, compare, run_folders
from trimtab.studies.contrasts import Contrast
from trimtab.studies.plan import in_words, planned_contrasts, planned_runs
from trimtab.studies.prune_run import Split
from trimtab.studies.pruning_score import pruning_choice
from trimtab.studies.records import Records, RunRecord
from trimtab.studies.summary import Cost, Latency, Run, Summary
from trimtab.studies.variants import Variant, safe_name
from trimtab.studies.weights.assemble import (
    assemble,
    keep_measurements,
    kept_measurements,
    measure_latencies,
)
from trimtab.studies.weights.cost import measure_costs
from trimtab.studies.workers import Launcher


def run_study(
    variants: Sequence[Variant],
    folder: Path,
    *,
    jobs: int | None,
    splits: tuple[Split, ...],
    quiet: bool,
    threads: int | None = None,
    records: Path | None = None,
    contrasts: Sequence[Contrast] = (),
    launcher: Launcher = "processes",
    address: str | None = None,
) -> list[Outcome]:
    """Run the variants with a progress display; failures are printed."""
    with study_progress(quiet=quiet) as report:
        outcomes = compare(
            variants, folder, jobs=jobs, threads=threads, splits=splits, records=records, contrasts=contrasts,
            launcher=launcher, address=address, report=report,
        )  # fmt: skip
    for outcome in outcomes:
        if outcome.error is not None:
            text = f"failed: {outcome.variant.label} seed {outcome.variant.recipe.seed}: {outcome.error}"
            errors.print(text, style="red", markup=False, highlight=False, soft_wrap=True)
    return outcomes


def measure_once(variants: Sequence[Variant], folder: Path, steps: int, records: Path | None = None) -> None:
    """Costs per step and latencies of this machine, kept in the study's folder and, where there is one, in that of records."""
    places = [folder, *([] if records is None else [records])]
    labels = {variant.label: variant.recipe for variant in variants}
    costs: list[Cost] = []
    latencies: list[Latency] = []
    for place in places:
        kept_costs, kept_latencies = kept_measurements(place)
        costs = kept_costs if {cost.method for cost in kept_costs} == set(labels) else costs
        latencies = latencies or kept_latencies
    if not costs:
        try:
            costs = measure_costs(list(labels.items()), steps=steps)
        except ArithmeticError as error:  # a diverging method must not cost the study its report
            errors.print(f"costs not measured: {error}", style="red", markup=False, soft_wrap=True)
    latencies = latencies or measure_latencies()
    for place in places:
        keep_measurements(place, costs, latencies)


def gathered(
    folder: Path, records: Path | None = None, *, study: Path | None = None
) -> tuple[list[RunFolder], dict[Path, RunRecord]]:
    """The run folders at or below `folder`, and the records of runs that have or had one.

    Args:
        folder: of a study or a run, or of records.
        records: further records.
        study: the folder that the runs of records are taken to lie in; default `folder`.

    Raises:
        ValueError: neither is there.
    """
    below = folder / "runs" if (folder / "runs").is_dir() else folder
    found: dict[Path, RunRecord] = {}
    for place in (folder, *([] if records is None else [records])):
        found |= Records(place).under(study or folder)
    if (found or planned_runs(folder)) and not any(
        below.rglob("recipe.yaml")
    ):  # none began: what is missing will be told
        return [], found
    return run_folders(below), found


def write_report(
    folder: Path, out: Path, *, name: str | None = None, split: Split = "test", records: Path | None = None
) -> Summary:
    """Assemble the summary of the runs below `folder`; write `summary.json` and `report.html` into `out`."""
    costs, latencies = kept_measurements(folder)
    runs, recorded = gathered(folder, records)
    summary = assemble(
        runs,
        out,
        name=name,
        split=split,
        costs=costs,
        latencies=latencies,
        planned=planned_runs(folder),
        records=recorded,
        contrasts=planned_contrasts(folder) if split == "test" else [],
    )
    out.mkdir(parents=True, exist_ok=True)
    summary.write(out / "summary.json")
    render(summary, out / "report.html")
    return summary


def best_network(summary: Summary, *, recalibrated: bool = True) -> tuple[str, int, float]:
    """Method, seed and sparsity of the network to ship.

    The greatest sparsity at which some method's mean quality stays within the metric's margin (2 points, 0.05 bits per byte)
    of the best dense mean [ours]; there the best method, and of its runs the one with the best dense network. When no method
    holds that, the least sparsity. To be
    called with a summary of the validation split: the test split chooses nothing.
    """
    rows = statistics.main_rows(summary.rows)
    metric = summary.measure
    entries = [entry for entry in statistics.table(rows, field=metric.column) if entry.recalibrated == recalibrated]
    if not entries and recalibrated:
        return best_network(summary, recalibrated=False)
    dense = metric.best(entry.mean for entry in entries if entry.sparsity == 0)
    pruned = [entry for entry in entries if entry.sparsity > 0]
    kept = [entry for entry in pruned if metric.gain(entry.mean - dense) >= -metric.margin]
    sparsity = max(entry.sparsity for entry in kept) if kept else min(entry.sparsity for entry in pruned)
    best = max((entry for entry in pruned if entry.sparsity == sparsity), key=lambda entry: metric.gain(entry.mean))
    runs = [run for run in summary.runs if run.method == best.method]

    def rank(run: Run) -> tuple[float, int]:
        quality = getattr(run, f"validation_{metric.column}")
        return -math.inf if quality is None else metric.gain(quality), -run.seed

    seed = max(runs, key=rank).seed
    return best.method, seed, sparsity


def write_best(folder: Path, out: Path, records: Path | None = None) -> str:
    """Prune and recalibrate the network that did best on the validation split, write it as a sparse file; a sentence on it.

    Where only the run's record is left the sentence says how to have the network again.
    """
    runs, recorded = gathered(folder, records)
    summary = assemble(runs, folder, split="validation", records=recorded)
    method, seed, sparsity = best_network(summary)
    run = next(run for run in summary.runs if (run.method, run.seed) == (method, seed))
    source = RunFolder(folder / run.folder)
    if not source.finished:
        return (
            f"best on the validation split: {method}, seed {seed}, {statistics.sparsity_label(sparsity)} sparse; no file "
            "written, since only its record is here, not its network (without --records the run is trained again)"
        )
    recipe: Recipe = source.recipe
    data = load_data(recipe)
    model = trained_model(source, data)
    section = recipe.pruning
    wanted = sparsity if section.pattern == "unstructured" else None
    one_shot(model, wanted, **pruning_choice(recipe, data))
    recalibrate(model, batches_of(recipe, data, "train").sample(recipe.pruning.recalibrate_batches, recipe.seed))
    file = out / f"{recipe.name}-{safe_name(method)}-{100 * sparsity:.4g}.safetensors"
    report = save_sparse(model, file, metadata={"method": method, "seed": str(seed), "recipe": recipe.name})
    return (
        f"{file}: {method}, {statistics.sparsity_label(sparsity)} sparse, best on the validation split, "
        f"{report.sparse_bytes:,} bytes instead of {report.dense_bytes:,} "
        f"({report.dense_bytes / report.sparse_bytes:.1f}x smaller)"
    )


def show(summary: Summary, out: Path, extra: Sequence[str] = ()) -> None:
    """Print the tables, the contrasts, the report's path and the headline."""
    for table in terminal_tables(summary):
        console.print(table)
    for contrast in summary.contrasts:
        console.print(
            contrast.words, style="bold" if contrast.shown else "", soft_wrap=True, markup=False, highlight=False
        )
    for line in extra:
        console.print(line, soft_wrap=True, markup=False)
    if summary.missing:
        console.print(
            in_words(summary.missing, len(summary.runs)) + ":", style="bold red", soft_wrap=True, markup=False
        )
        for run in summary.missing:
            console.print(f"  {run}", style="red", soft_wrap=True, markup=False, highlight=False)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    console.print(f"headline: {summary.headline}", soft_wrap=True, markup=False)

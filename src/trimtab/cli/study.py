"""What `compare`, `demo` and `report` do once the runs are there: summary, report, the best network as a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trimtab.cli.console import console, errors, study_progress
from trimtab.deploy import save_sparse
from trimtab.experiments import statistics
from trimtab.experiments.assemble import assemble, keep_measurements, kept_measurements, measure_latencies
from trimtab.experiments.comparison import Outcome, compare, run_folders
from trimtab.experiments.cost import measure_costs
from trimtab.experiments.prune_run import Split
from trimtab.experiments.recipe import Recipe
from trimtab.experiments.run_folder import RunFolder
from trimtab.experiments.summary import Summary
from trimtab.experiments.training import batches_of, load_data, trained_model
from trimtab.experiments.variants import Variant
from trimtab.pruning import one_shot, recalibrate
from trimtab.report import render
from trimtab.report.terminal import terminal_table


def run_study(
    variants: Sequence[Variant], folder: Path, *, jobs: int, splits: tuple[Split, ...], quiet: bool
) -> list[Outcome]:
    """Run the variants with a progress display; failures are printed."""
    with study_progress(quiet) as report:
        outcomes = compare(variants, folder, jobs=jobs, splits=splits, report=report)
    for outcome in outcomes:
        if outcome.error is not None:
            errors.print(
                f"failed: {outcome.variant.label} seed {outcome.variant.recipe.seed}: {outcome.error}", style="red"
            )
    return outcomes


def measure_once(variants: Sequence[Variant], folder: Path, steps: int) -> None:
    """Costs per step and latencies of this machine, kept in the study's folder."""
    costs, latencies = kept_measurements(folder)
    labels = {variant.label: variant.recipe for variant in variants}
    if {cost.method for cost in costs} != set(labels):
        costs = measure_costs(list(labels.items()), steps=steps)
    keep_measurements(folder, costs, latencies or measure_latencies())


def write_report(folder: Path, out: Path, *, name: str | None = None, split: Split = "test") -> Summary:
    """Assemble the summary of the runs below `folder`; write `summary.json` and `report.html` into `out`."""
    costs, latencies = kept_measurements(folder)
    summary = assemble(run_folders(folder), folder, name=name, split=split, costs=costs, latencies=latencies)
    out.mkdir(parents=True, exist_ok=True)
    summary.write(out / "summary.json")
    render(summary, out / "report.html")
    return summary


def best_network(summary: Summary, recalibrated: bool = True) -> tuple[str, int, float]:
    """Method, seed and sparsity of the network to ship.

    The greatest sparsity at which some method's mean quality stays within 2 points of the best dense mean [ours]; there the
    best method, and of its runs the one that did best on the validation split, so that the test split chooses no seed. When
    no method holds 2 points, the least sparsity.
    """
    entries = [
        entry
        for entry in statistics.table(summary.rows)
        if entry.score == "magnitude" and entry.scope == "global" and entry.recalibrated == recalibrated
    ]
    if not entries and recalibrated:
        return best_network(summary, recalibrated=False)
    dense = max(entry.mean for entry in entries if entry.sparsity == 0)
    pruned = [entry for entry in entries if entry.sparsity > 0]
    kept = [entry for entry in pruned if entry.mean >= dense - 0.02]
    sparsity = max(entry.sparsity for entry in kept) if kept else min(entry.sparsity for entry in pruned)
    best = max((entry for entry in pruned if entry.sparsity == sparsity), key=lambda entry: entry.mean)
    runs = [run for run in summary.runs if run.method == best.method]
    seed = max(runs, key=lambda run: (run.validation_accuracy or 0.0, -run.seed)).seed
    return best.method, seed, sparsity


def write_best(summary: Summary, folder: Path, out: Path) -> str:
    """Prune and recalibrate the best network, write it as a sparse file; returns a sentence about it."""
    method, seed, sparsity = best_network(summary)
    run = next(run for run in summary.runs if (run.method, run.seed) == (method, seed))
    source = RunFolder(folder / run.folder)
    recipe: Recipe = source.recipe
    data = load_data(recipe)
    model = trained_model(source, data)
    one_shot(model, sparsity, score=recipe.pruning.score, scope=recipe.pruning.scope, pattern=recipe.pruning.pattern)
    recalibrate(model, batches_of(recipe, data, "train").sample(recipe.pruning.recalibrate_batches, recipe.seed))
    file = out / f"{recipe.name}-{method.replace('+', '_')}-{sparsity:.0%}.safetensors".replace("%", "")
    report = save_sparse(model, file, metadata={"method": method, "seed": str(seed), "recipe": recipe.name})
    return (
        f"{file}: {method}, {sparsity:.0%} sparse, {report.sparse_bytes:,} bytes instead of {report.dense_bytes:,} "
        f"({report.dense_bytes / report.sparse_bytes:.1f}x smaller)"
    )


def show(summary: Summary, out: Path, extra: Sequence[str] = ()) -> None:
    """Print the tables, the report's path and the headline."""
    for recalibrated in sorted({row.recalibrated for row in summary.rows}):
        console.print(terminal_table(summary, recalibrated=recalibrated))
    for line in extra:
        console.print(line, soft_wrap=True, markup=False)
    console.print(f"report: {out / 'report.html'}", soft_wrap=True)
    console.print(f"headline: {summary.headline}", soft_wrap=True, markup=False)

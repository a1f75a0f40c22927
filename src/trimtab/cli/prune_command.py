"""`trimtab prune`: measure a finished run at many sparsities, or prune the folder of a language model."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trimtab.cli import language_pruning
from trimtab.cli.arguments import Output, check_first, parse
from trimtab.cli.console import console, errors, print_json
from trimtab.cli.dry_run import Part, show_parts
from trimtab.report.weights.terminal import terminal_tables
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.sections import Pruning
from trimtab.studies.estimate import estimate
from trimtab.studies.prune_run import prune_run, pruned_file, read_pruned
from trimtab.studies.statistics import sparsity_label
from trimtab.studies.variants import Variant
from trimtab.studies.weights.assemble import assemble


@dataclass(frozen=True)
class PruneArguments:
    """Prunes a finished run once at each sparsity, without retraining, and measures it with and without BatchNorm
    recalibration, and on request after training on (--finetune). The run's network is not changed. A folder of a
    language model (transformers) has options of its own: trimtab prune MODEL --help.

    Examples:
        trimtab prune runs/digits/sgd/seed0
        trimtab prune runs/digits/sgd/seed0 --sparsities 0.6 0.85 --replace
        trimtab prune runs/digits/sgd/seed0 --finetune 5
    """

    run: tyro.conf.Positional[Path]
    """A finished run folder."""
    pruning: Annotated[Pruning, tyro.conf.arg(name="")] = Pruning()
    split: Literal["validation", "test"] = "test"
    """What to measure on."""
    root: str | None = None
    """Where the data lie, if not where the recipe says."""
    replace: bool = False
    """Let other settings than the recipe's replace what reports read; without it they go into pruning-SPLIT-other.json."""
    dry_run: bool = False
    """Say what would be measured and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def _study_of(run: Path) -> Path:
    """The study that holds the run, where there is one; else the run."""
    return next((folder for folder in run.parents if (folder / "study.json").is_file()), run)


def _show_cost(recipe: Recipe, given: PruneArguments, file: Path) -> int:
    """One row: the network pruned and measured at every sparsity, timed on one like it."""
    (cost,) = estimate([Variant(recipe.method, recipe)], [given.run / "of-a-dry-run"], (given.split,))
    points = len(recipe.pruning.sparsities) if recipe.pruning.pattern == "unstructured" else 1
    tuned = f", each trained on for {recipe.pruning.finetune} epochs" if recipe.pruning.finetune else ""
    what = f"sparsities and the dense network, measured on the {given.split} split{tuned}"
    return show_parts([Part(what, points + 1, cost.prune_seconds / (points + 1))], file, given.output)


def run(arguments: Sequence[str]) -> int:
    """Parse and measure."""
    first = Path(arguments[0]) if arguments and not arguments[0].startswith("-") else None
    if first is not None and language_pruning.meant_by(first, arguments):
        return language_pruning.run(arguments)
    if first is not None and not first.is_dir():
        raise FileNotFoundError(f"{first} is not a run folder, nor one of a language model: there is no such folder")
    default = None if first is None else PruneArguments(first, RunFolder(first).recipe.pruning)
    given = parse(PruneArguments, arguments, "prune", default=default)
    check_first(given.run, first, "RUN", "prune")
    folder = RunFolder(given.run)
    own = folder.recipe
    data = own.data if given.root is None else own.data.model_copy(update={"root": given.root})
    recipe = own.model_copy(update={"pruning": given.pruning, "data": data})
    file = pruned_file(folder, given.split)
    label = read_pruned(file).histogram.method if file.is_file() else None
    tuning = own.pruning.model_dump(include={"finetune", "finetune_rate"})  # which adds rows and changes none
    if given.pruning.model_copy(update=tuning) != own.pruning and not given.replace:
        file = file.with_name(f"{file.stem}-other.json")
    if given.dry_run:
        return _show_cost(recipe, given, file)
    note = None if given.output.silent else lambda text: errors.print(f"  {text}")
    result = prune_run(folder, recipe=recipe, label=label, split=given.split, report=note, file=file)
    if given.output.json:
        print_json(result.model_dump(mode="json"))
        return 0
    summary = assemble([folder], given.run, split=given.split, measured={folder.path: result})
    for table in terminal_tables(summary):
        console.print(table)
    if result.views is not None:
        console.print(f"dense, {result.views['views']:g} views of each image: {result.views['accuracy']:.2%}")
    for stored in result.storage:
        console.print(
            f"{sparsity_label(stored.sparsity)} sparse: {stored.sparse_bytes:,} bytes instead of {stored.dense_bytes:,} "
            f"({stored.dense_bytes / stored.sparse_bytes:.2f}x smaller; gzip {stored.gzip_bytes:,})"
        )
    if result.left_out:
        name, reason = next(iter(result.left_out.items()))
        console.print(f"left out of pruning: {len(result.left_out)} tensors, such as {name}: {reason}", markup=False)
    console.print(f"kept in {file}", soft_wrap=True, markup=False)
    if file != pruned_file(folder, given.split):
        words = shlex.join([*arguments, "--replace"])
        console.print("reports do not read this file: give --replace to have these sparsities there:", soft_wrap=True)
        console.print(f"  trimtab prune {words}\n  trimtab report {_study_of(given.run)}", soft_wrap=True, markup=False)
    console.print(f"next: trimtab export {given.run} --sparsity 0.9", soft_wrap=True)
    return 0

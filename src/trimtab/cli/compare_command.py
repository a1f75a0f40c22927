"""`trimtab compare`: methods x settings x seeds, then the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trimtab.cli import gradients_command
from trimtab.cli.arguments import Output
from trimtab.cli.console import print_json
from trimtab.cli.dry_run import show_cost
from trimtab.cli.recipe_arguments import Fields, parse_vary, parse_with_study
from trimtab.cli.study import measure_once, run_study, show, write_best, write_report
from trimtab.runs.prunable import check_all_prunable
from trimtab.studies.prune_run import Split
from trimtab.studies.study_file import study_variants
from trimtab.studies.variants import Variant, default_study, variants

SPLITS: tuple[Split, ...] = ("validation", "test")


@dataclass(frozen=True)
class CompareArguments:
    """Trains, prunes and measures several methods over several seeds, then writes the report. Finished runs are
    kept: the same command goes on.

    Examples:
        trimtab compare digits --methods sgd cram+ l1+cram+ --seeds 0 1 2
        trimtab compare digits --methods sgd l1 --vary l1.strength=1e-5,1e-4
        trimtab compare cifar10-resnet20 --data.root DIR --methods sgd cram+
    """

    recipe: tyro.conf.Positional[str]
    """A shipped name (trimtab list recipes), a YAML file, or a run folder."""
    fields: Fields
    methods: tuple[str, ...] = ("sgd", "var")
    """Methods: levers joined by + (trimtab list levers), such as sgd var l1+cram+."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; fewer than two give no interval."""
    vary: tuple[str, ...] = ()
    """Further settings, e.g. var.strength=1e-6,1e-5; each applies to the methods that read it."""
    study: Path | None = None
    """File with the runs in their order (rows of method, settings, vary, seeds), instead of --methods and --vary; it may name
    the recipe."""
    records: Path | None = None
    """Folder that keeps one small file of every finished run; a run whose file is there is done."""
    out: Path | None = None
    """Folder of the study; default runs/NAME, with a mark of the recipe where runs of another lie there."""
    jobs: int | None = None
    """Runs side by side; default 1, on a cluster as many as it has cores for."""
    threads: int | None = None
    """Threads of each; default the cores divided among the jobs, on a cluster 1."""
    launcher: Literal["processes", "ray"] = "processes"
    """Who does the runs: processes of this machine, or tasks of a Ray cluster whose machines share the folders."""
    address: str | None = None
    """Of a Ray cluster's head, HOST:PORT or auto; default RAY_ADDRESS, failing that a cluster of this machine."""
    cost_steps: int = 20
    """Steps of each method to time for the cost figure."""
    prune: bool = True
    """Prune and measure the runs; --no-prune (with --track gradients): only train them and make the page of gradients."""
    dry_run: bool = False
    """Say what would run and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def _check_unpruned(given: CompareArguments, runs: Sequence[Variant]) -> None:
    if not all({"gradients", "updates", "weights"} & set(one.recipe.track) for one in runs):
        raise ValueError("--no-prune needs something else to compare: give --track gradients with it")
    if given.records is not None:
        raise ValueError("--records keep what pruning a run gave; leave them out with --no-prune")


def run(arguments: Sequence[str]) -> int:
    """Parse, run, report."""
    given, study = parse_with_study(CompareArguments, arguments, "compare")
    recipe, output, records = given.fields, given.output, given.records
    if given.cost_steps < 1 or (given.jobs is not None and given.jobs < 1):
        raise ValueError(f"--cost-steps and --jobs must be 1 or more, got {given.cost_steps} and {given.jobs}")
    runs = (
        variants(recipe, given.methods, given.seeds, parse_vary(given.vary))
        if study is None
        else study_variants(study, recipe, given.seeds, str(given.study))
    )
    if not given.prune:
        _check_unpruned(given, runs)
    folder = given.out or default_study(Path("runs") / recipe.name, recipe, runs)
    if given.dry_run:
        paths = [folder / "runs" / one.folder for one in runs]
        return show_cost(runs, paths, SPLITS if given.prune else (), given.jobs or 1, output, records)
    if given.prune:
        check_all_prunable(one.recipe for one in runs)
    outcomes = run_study(
        runs, folder, jobs=given.jobs, threads=given.threads, splits=SPLITS if given.prune else (), quiet=output.silent,
        records=records, contrasts=() if study is None else study.contrasts, launcher=given.launcher, address=given.address,
    )  # fmt: skip
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(failed) == len(outcomes):
        return 1
    if not given.prune:
        gradients_command.show([folder / "runs"], folder, output, layers=False)
        return 1 if failed else 0
    measure_once(runs, folder, given.cost_steps, records)
    summary = write_report(folder, folder, name=recipe.name, records=records)
    best = write_best(folder, folder, records)
    if output.json:
        print_json(summary.model_dump(mode="json", by_alias=True))
    else:
        show(summary, folder, [best])
    return 1 if failed else 0

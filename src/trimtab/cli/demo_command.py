"""`trimtab demo`: the whole job on scikit-learn's digits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.cli.dry_run import show_cost
from trimtab.cli.study import measure_once, run_study, show, write_best, write_report
from trimtab.runs.recipe import load_recipe
from trimtab.studies.variants import variants

METHODS = ("sgd", "var", "sam", "cram+")


@dataclass(frozen=True)
class DemoArguments:
    """Trains a small network on real digit images by four methods with three seeds, prunes each at six sparsities,
    and says which way of training bears pruning best. Nothing is downloaded.

    Examples:
        trimtab demo
        trimtab demo --out demo --seeds 0 1
        trimtab demo --json > demo.json
    """

    out: Path = Path("demo")
    """Folder for runs, report.html, summary.json and the sparse file."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds."""
    jobs: int = min(os.cpu_count() or 1, 2)
    """Runs side by side."""
    dry_run: bool = False
    """Say what would be run and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse and run."""
    given = parse(DemoArguments, arguments, "demo")
    recipe = load_recipe("digits")
    runs = variants(recipe, METHODS, given.seeds)
    if given.dry_run:
        paths = [given.out / "runs" / one.folder for one in runs]
        return show_cost(runs, paths, ("validation", "test"), given.jobs, given.output)
    if not given.output.silent:
        console.print(
            f"{len(METHODS)} methods x {len(given.seeds)} seeds on {recipe.data.name} ({recipe.model.name}), pruned at "
            f"{len(recipe.pruning.sparsities)} sparsities"
        )
    outcomes = run_study(runs, given.out, jobs=given.jobs, splits=("validation", "test"), quiet=given.output.silent)
    failed = [outcome for outcome in outcomes if outcome.error is not None]
    if len(failed) == len(outcomes):
        return 1
    measure_once(runs, given.out, steps=30)
    summary = write_report(given.out, given.out, name="demo: digits")
    best = write_best(given.out, given.out)
    if given.output.json:
        print_json(summary.model_dump(mode="json", by_alias=True))
    else:
        show(summary, given.out, [best])
    return 1 if failed else 0

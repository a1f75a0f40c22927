"""`trimtab tune`: choose settings on the validation split; the test split is never looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from trimtab.cli.arguments import Output
from trimtab.cli.console import console, print_json
from trimtab.cli.recipe_arguments import Fields, parse_vary, parse_with_recipe
from trimtab.cli.study import run_study
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.prune_run import prune_run
from trimtab.studies.variants import variants
from trimtab.studies.weights.tuning import choose, chosen_settings


@dataclass(frozen=True)
class TuneArguments:
    """`trimtab tune RECIPE --methods var --vary var.strength=1e-6,1e-5,1e-4 [options]`: trains every setting, prunes it, measures it on the validation split, and writes the best into tuned.yaml."""  # noqa: E501

    recipe: tyro.conf.Positional[str]
    """A shipped name (trimtab list recipes), a YAML file, or a run folder."""
    fields: Fields
    vary: tuple[str, ...] = ("var.strength=1e-6,1e-5,1e-4",)
    """Settings to try."""
    methods: tuple[str, ...] = ("var",)
    """Methods to tune, each on its own settings: levers joined by +."""
    seeds: tuple[int, ...] = (0,)
    """Seeds to average over."""
    criterion: Literal["plain", "recalibrated", "both", "dense"] = "both"
    """Mean accuracy over the pruned sparsities: as pruned, after BatchNorm recalibration, the mean of both; or dense."""
    out: Path | None = None
    """Folder; default runs/NAME-tuning."""
    jobs: int = 1
    """Runs side by side."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse, run, choose."""
    given = parse_with_recipe(TuneArguments, arguments, "tune")
    recipe, output = given.fields, given.output
    vary = parse_vary(given.vary)
    pruning = recipe.pruning.model_copy(update={"controls": False})
    runs = variants(recipe.model_copy(update={"pruning": pruning}), given.methods, given.seeds, vary)
    folder = given.out or Path("runs") / f"{recipe.name}-tuning"
    outcomes = run_study(runs, folder, jobs=given.jobs, splits=("validation",), quiet=output.silent)
    good = [outcome for outcome in outcomes if outcome.error is None]
    if not good:
        return 1
    measured = [
        (
            outcome.variant,
            prune_run(
                RunFolder(outcome.folder),
                recipe=outcome.variant.recipe,
                label=outcome.variant.label,
                varied=outcome.variant.varied,
                split="validation",
            ).rows,
        )
        for outcome in good
    ]
    choices = choose(measured, given.criterion)
    settings = chosen_settings(choices, list(vary))
    recipe.with_settings(settings).write(folder / "tuned.yaml")
    if output.json:
        scores = {choice.method: dict(choice.scores) for choice in choices}
        print_json({"settings": settings, "scores": scores, "recipe": str(folder / "tuned.yaml")})
    else:
        table = Table(
            title="validation accuracy of the dense network"
            if given.criterion == "dense"
            else f"validation accuracy after pruning, mean over sparsities ({given.criterion})"
        )
        table.add_column("setting")
        table.add_column("score", justify="right")
        for choice in choices:
            for label, score in choice.scores:
                table.add_row(escape(label), f"{score:.2%}", style="bold" if label == choice.best.label else None)
        console.print(table)
        console.print(f"chosen: {settings}\nrecipe: {folder / 'tuned.yaml'}", soft_wrap=True)
    return 0 if len(good) == len(outcomes) else 1

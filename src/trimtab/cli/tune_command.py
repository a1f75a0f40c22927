"""`trimtab tune`: choose settings on the validation split; the test split is never looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.markup import escape
from rich.table import Table

from trimtab.cli.arguments import Output
from trimtab.cli.console import console, print_json
from trimtab.cli.dry_run import show_cost
from trimtab.cli.recipe_arguments import Fields, parse_vary, parse_with_study
from trimtab.cli.study import run_study
from trimtab.runs.metric import Metric, metric_of
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.comparison import Outcome
from trimtab.studies.prune_run import prune_run
from trimtab.studies.records import Records
from trimtab.studies.study_file import StudyFile, StudyRow, study_variants
from trimtab.studies.summary import Row
from trimtab.studies.variants import default_study, variants
from trimtab.studies.weights.tuning import choose, chosen_settings


@dataclass(frozen=True)
class TuneArguments:
    """Trains every setting, prunes it, measures it on the validation split, and writes the best into tuned.yaml.
    The test split is never looked at.

    Examples:
        trimtab tune digits --methods l1 --vary l1.strength=1e-5,1e-4,1e-3
        trimtab tune digits --methods cram+ --vary cram.rho=0.1,0.2 --seeds 0 1
        trimtab tune digits --methods hoyer --vary hoyer.strength=1e-4,1e-3
    """

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
    """Mean quality over the pruned sparsities: as pruned, after BatchNorm recalibration, the mean of both; or dense."""
    study: Path | None = None
    """File with the runs in their order, each row with a grid of its own, instead of --methods and --vary; the best of each
    row's name goes into tuned-study.yaml, which compare --study takes."""
    records: Path | None = None
    """Folder that keeps one small file of every finished run; a run whose file is there is done."""
    out: Path | None = None
    """Folder; default runs/NAME-tuning, with a mark of the recipe where runs of another lie there."""
    jobs: int = 1
    """Runs side by side."""
    threads: int | None = None
    """Threads of each; default the cores divided among the jobs."""
    dry_run: bool = False
    """Say what would run and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def run(arguments: Sequence[str]) -> int:
    """Parse, run, choose."""
    given, study = parse_with_study(TuneArguments, arguments, "tune")
    recipe, output = given.fields, given.output
    if study is not None and study.contrasts:
        raise ValueError(f"{given.study}: contrasts are judged by compare, on the test split; a tuning has none")
    vary = parse_vary(given.vary)
    base = recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update={"controls": False})})
    runs = (
        variants(base, given.methods, given.seeds, vary)
        if study is None
        else study_variants(study, base, given.seeds, str(given.study))
    )
    folder = given.out or default_study(Path("runs") / f"{recipe.name}-tuning", recipe, runs)
    if given.dry_run:
        paths = [folder / "runs" / one.folder for one in runs]
        return show_cost(runs, paths, ("validation",), given.jobs, output, given.records)
    outcomes = run_study(
        runs, folder, jobs=given.jobs, threads=given.threads, splits=("validation",), quiet=output.silent,
        records=given.records,
    )  # fmt: skip
    good = [outcome for outcome in outcomes if outcome.error is None]
    if not good:
        return 1
    measured = [(outcome.variant, _rows(outcome, given.records)) for outcome in good]
    metric = _metric(good[0], given.records)
    choices = choose(measured, given.criterion, metric)
    if study is None:
        settings = chosen_settings(choices, list(vary))
        file = folder / "tuned.yaml"
        recipe.with_settings(settings).write(file)
    else:
        settings = {choice.method: chosen_settings([choice], choice.best.varied) for choice in choices}
        file = folder / "tuned-study.yaml"
        StudyFile(
            recipe=given.recipe,
            settings=study.settings,
            rows=tuple(
                StudyRow(method=choice.best.recipe.method, label=choice.method, settings=settings[choice.method])
                for choice in choices
            ),
        ).write(file)
    if output.json:
        scores = {choice.method: dict(choice.scores) for choice in choices}
        print_json({"settings": settings, "scores": scores, "recipe" if study is None else "study": str(file)})
    else:
        table = Table(
            title=f"validation {metric.word} of the dense network"
            if given.criterion == "dense"
            else f"validation {metric.word} after pruning, mean over sparsities ({given.criterion})"
        )
        table.add_column("setting")
        table.add_column("score", justify="right")
        for choice in choices:
            for label, score in choice.scores:
                written = metric.number(score, more=1) + metric.sign.strip()
                table.add_row(escape(label), written, style="bold" if label == choice.best.label else None)
        console.print(table)
        chosen = ", ".join(_in_words(name, value) for name, value in settings.items()) or "nothing to set"
        console.print(f"chosen: {chosen}\n{'recipe' if study is None else 'study'}: {file}", soft_wrap=True)
    return 0 if len(good) == len(outcomes) else 1


def _in_words(name: str, value: Any) -> str:
    if isinstance(value, dict):  # of a study's row
        return f"{name} (" + ", ".join(_in_words(*item) for item in value.items()) + ")"
    return f"{name} = {value}"


def _metric(outcome: Outcome, records: Path | None) -> Metric:
    """What quality is for a run that went well."""
    record = None if records is None else Records(records).done(outcome.variant, ("validation",))
    return metric_of(RunFolder(outcome.folder).info()["task"]) if record is None else record.task()[0]


def _rows(outcome: Outcome, records: Path | None) -> list[Row]:
    """What a run that went well measured."""
    variant = outcome.variant
    record = None if records is None else Records(records).done(variant, ("validation",))
    if record is not None:
        return record.measured["validation"].rows
    run = RunFolder(outcome.folder)
    return prune_run(run, recipe=variant.recipe, label=variant.label, varied=variant.varied, split="validation").rows

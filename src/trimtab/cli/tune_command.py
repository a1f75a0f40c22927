"""`trimtab tune`: choose settings on the validation split; the test split is never looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.comparison import Outcome
from trimtab.studies.plan import write_plan
from trimtab.studies.prune_run import prune_run
from trimtab.studies.records import Records
from trimtab.studies.sampling import Space, check_sampler, has_range, parse_space, search
from trimtab.studies.study_file import StudyFile, StudyRow, study_variants
from trimtab.studies.summary import Row
from trimtab.studies.variants import Variant, applies, default_study, variants
from trimtab.studies.weights.tuning import choose, chosen_settings, pruning_score


@dataclass(frozen=True)
class TuneArguments:
    """Trains every setting, prunes it, measures it on the validation split, and writes the best into tuned.yaml.
    The test split is never looked at.

    Examples:
        trimtab tune digits --methods l1 --vary l1.strength=1e-5,1e-4,1e-3
        trimtab tune digits --methods cram+ --vary cram.rho=0.1,0.2 --seeds 0 1
        trimtab tune digits --vary var.strength=1e-6..1e-3 --sampler optuna
    """

    recipe: tyro.conf.Positional[str]
    """A shipped name (trimtab list recipes), a YAML file, or a run folder."""
    fields: Fields
    vary: tuple[str, ...] = ("var.strength=1e-6,1e-5,1e-4",)
    """Settings to try: FIELD=VALUE,VALUE; with --sampler optuna also FIELD=LOW..HIGH."""
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
    sampler: Literal["grid", "optuna"] = "grid"
    """grid: every setting; optuna: TPE proposes one after another (extra trimtab[optuna])."""
    trials: int = 20
    """Settings that optuna proposes for each method; a search that was stopped goes on when the same command is given again."""
    sampler_seed: int = 0
    """Of optuna's proposals."""
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
    base = recipe.model_copy(update={"pruning": recipe.pruning.model_copy(update={"controls": False})})
    sampled = given.sampler == "optuna"
    if sampled:
        vary, runs = _first_proposals(given, base, study)
    elif has_range(given.vary):
        raise ValueError(f"--vary {given.vary[0]}: a range needs --sampler optuna; a grid takes VALUE,VALUE")
    else:
        vary = parse_vary(given.vary)
        runs = (
            variants(base, given.methods, given.seeds, vary)
            if study is None
            else study_variants(study, base, given.seeds, str(given.study))
        )
    folder = given.out or default_study(Path("runs") / f"{recipe.name}-tuning", recipe, runs)
    if given.dry_run:
        if sampled:  # what will be proposed is not known: each as the first
            runs = [replace(one, label=one.recipe.method) for one in runs for _ in range(given.trials)]
        paths = [folder / "runs" / one.folder for one in runs]
        return show_cost(runs, paths, ("validation",), given.jobs, output, given.records)
    outcomes = _searched(given, base, folder) if sampled else _run(given, runs, folder)
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


def _run(given: TuneArguments, runs: Sequence[Variant], folder: Path) -> list[Outcome]:
    return run_study(
        runs, folder, jobs=given.jobs, threads=given.threads, splits=("validation",), quiet=given.output.silent,
        records=given.records,
    )  # fmt: skip


def _own_space(space: Space, base: Recipe, method: str) -> Space:
    """The fields that a run by this method reads."""
    chosen = base.with_settings({"method": method})
    return {field: one for field, one in space.items() if applies(field, chosen)}


def _runs_of(given: TuneArguments, base: Recipe, method: str, settings: dict[str, Any]) -> list[Variant]:
    return variants(base, (method,), given.seeds, {field: [value] for field, value in settings.items()})


def _first_proposals(
    given: TuneArguments, base: Recipe, study: StudyFile | None
) -> tuple[dict[str, Any], list[Variant]]:
    """The space's fields, both ends of each checked, and the runs of the first proposal for each method."""
    if study is not None:
        raise ValueError("--study names its settings itself; --sampler optuna takes --methods and --vary")
    check_sampler()
    space = parse_space(given.vary)
    ends = {field: one if isinstance(one, list) else [one.low, one.high] for field, one in space.items()}
    variants(base, given.methods, given.seeds, ends)
    runs: list[Variant] = []
    for method in given.methods:
        own = _own_space(space, base, method)
        search(own, 1, given.sampler_seed, lambda found, one=method: runs.extend(_runs_of(given, base, one, found)))  # type: ignore[misc]
    return ends, runs


def _searched(given: TuneArguments, base: Recipe, folder: Path) -> list[Outcome]:
    """Optuna proposes, the runs are made and measured, the score goes back; method after method."""
    space = parse_space(given.vary)
    outcomes: list[Outcome] = []

    def score(method: str, settings: dict[str, Any]) -> float | None:
        made = _run(given, _runs_of(given, base, method, settings), folder)
        known = {one.folder for one in outcomes}  # a proposal may come twice
        outcomes.extend(one for one in made if one.folder not in known)
        if any(one.error is not None for one in made):
            return None
        metric = _metric(made[0], given.records)
        return metric.gain(
            pruning_score([row for one in made for row in _rows(one, given.records)], given.criterion, metric)
        )

    for method in given.methods:
        own = _own_space(space, base, method)
        search(own, given.trials if own else 1, given.sampler_seed, partial(score, method))
    write_plan([one.variant for one in outcomes], folder)
    return outcomes


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

"""`trimtab precision`: the same training in several number formats, as a table, a page and JSON."""

from __future__ import annotations

import datetime
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import tyro
from pydantic import TypeAdapter, ValidationError
from rich import box
from rich.table import Table
from rich.text import Text

from trimtab.cli.arguments import Output
from trimtab.cli.console import console, print_json
from trimtab.cli.dry_run import show_cost
from trimtab.cli.recipe_arguments import Fields, parse_with_recipe
from trimtab.cli.study import run_study
from trimtab.files import write_text
from trimtab.precision.rounding import Rounding
from trimtab.report.precision.formats import median_of
from trimtab.report.precision.theory import render_precision
from trimtab.runs.loading import load_data
from trimtab.runs.machine import hardware, versions
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.comparison import run_folders
from trimtab.studies.precision.conclusions import in_words, quality
from trimtab.studies.precision.logistic import Descent, descend, wanted_descents
from trimtab.studies.precision.prediction import agreement, parts_of, predictions
from trimtab.studies.precision.records import PrecisionStudy, gather, is_diverged
from trimtab.studies.precision.variants import FormatStudy, format_variants
from trimtab.studies.precision.verdict import verdicts, worst_words
from trimtab.studies.statistics import Estimate


@dataclass(frozen=True)
class PrecisionArguments:
    """Trains in full precision and in each number format; shows loss, accuracy and what rounding did to the
    gradients. Finished runs are kept and shown with those of later calls.

    Examples:
        trimtab precision digits --formats fp16,e4m3,e2m1
        trimtab precision digits --formats e2m1,int4 --scaling none,mx
        trimtab precision digits --formats mxfp8,mxfp4,nvfp4
    """

    recipe: tyro.conf.Positional[str]
    """A shipped name (trimtab list recipes), a YAML file, or a run folder."""
    fields: Fields
    formats: tuple[str, ...] = ("fp16", "e4m3", "e5m2", "e2m1", "int4")
    """Number formats, eXmY and intN; and recipes: nvfp4, mxfp4, mxfp8, fp8-deepseek, fp8-tensor, fp8-delayed."""
    rounding: tuple[str, ...] = ("nearest",)
    """nearest, toward_zero, stochastic: each with each format."""
    scaling: tuple[str, ...] = ("none",)
    """none, tensor, channel, block, mx: each with each format."""
    compensate: bool = False
    """Also run each with the step divided by the running shrinkage."""
    tensors: tuple[str, ...] = ("gradients",)
    """What is rounded: gradients, weights, momentum, activations, activation_gradients."""
    steps: tuple[str, ...] = ("1",)
    """Factors of the learning rate, e.g. 1,2,4, with full precision too."""
    seeds: tuple[int, ...] = (0, 1)
    """Seeds; fewer than two give no interval."""
    out: Path | None = None
    """Folder of the study; default runs/NAME-precision."""
    jobs: int = 1
    """Runs side by side; the cores are divided among them."""
    threads: int | None = None
    """Threads of each run; default the cores divided among the runs. 1 on a machine that does other work too."""
    logistic: bool = True
    """Also draw prediction and bound over the measurement on logistic regression."""
    dry_run: bool = False
    """Say what would run and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def words(items: Sequence[str]) -> tuple[str, ...]:
    """Items with commas taken apart.

    Example:
        >>> words(["fp16,e4m3", "int4"])
        ('fp16', 'e4m3', 'int4')
    """
    return tuple(part.strip() for item in items for part in item.split(",") if part.strip())


def study_of(given: PrecisionArguments) -> FormatStudy:
    """What the flags ask for; ValueError names what is wrong."""
    steps = []
    for word in words(given.steps):
        try:
            steps.append(float(word))
        except ValueError:
            raise ValueError(f"--steps takes numbers such as 1,2,4, got {word!r}") from None
    return FormatStudy(
        formats=words(given.formats),
        rounding=cast(tuple[Rounding, ...], words(given.rounding)),  # checked there
        scaling=words(given.scaling),
        compensate=given.compensate,
        tensors=words(given.tensors),
        steps=tuple(steps),
    )


def kept_descents(folder: Path) -> list[Descent]:
    """What `logistic.json` of an earlier call holds; ValueError when it is damaged."""
    file = folder / "logistic.json"
    if not file.is_file():
        return []
    try:
        return TypeAdapter(list[Descent]).validate_json(file.read_bytes())
    except ValidationError as error:
        raise ValueError(f"{file} is damaged ({error.errors()[0]['msg']}); delete it to measure again") from None


def measure_descents(folder: Path, study: FormatStudy) -> list[Descent]:
    """The logistic regressions of the study, and those of earlier calls; only what is missing is run."""
    found = kept_descents(folder)
    for wanted in wanted_descents(study.of_tensors, study.rounding, study.scaling):
        if not any((one.format, one.rounding, one.scaling) == wanted for one in found):
            found.append(descend(*wanted))
            write_text(folder / "logistic.json", json.dumps([one.model_dump() for one in found]) + "\n")
    return found


def _text(found: Estimate | None, *, percent: bool) -> Text:
    if found is None:
        return Text("-", style="dim")
    scale, digits = (100, 1) if percent else (1, 3)
    text = Text(f"{scale * found.mean:.{digits}f}")
    if found.half is not None:
        text.append(f"±{scale * found.half:.{digits}f}", style="dim")
    return text


def _number(value: float | None, *, percent: bool = False) -> str:
    return "-" if value is None else f"{100 * value:.3g}" if percent else f"{value:.4g}"


def format_table(study: PrecisionStudy) -> Table:
    """One row per label: quality over seeds, and what rounding did."""
    seeds = len({run.seed for run in study.runs})
    interval = "one seed: no interval" if seeds == 1 else "± 95 % t interval over seeds"
    table = Table(
        title=study.name, box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False,
        caption=f"loss: training, last epoch; acc: test, %; {interval}. q: projection of the rounded gradient on the true one, "
        f"median over the metered steps; least: of a single step; dead, over: % of the entries; these: medians over seeds; "
        f"chance {100 * study.chance:.3g} %",
    )  # fmt: skip
    table.add_column("format", overflow="fold", min_width=10)
    for name in ("loss", "acc", "q", "least", "dead", "over"):
        table.add_column(name, justify="right", no_wrap=True)
    for label in study.labels:
        runs, found = study.of(label), quality(study, label)
        lost = len(runs) - found.finished
        table.add_row(
            Text(label + (f" ({lost} of {len(runs)} diverged)" if lost else "")),
            _text(found.train_loss, percent=False), _text(found.accuracy, percent=True),
            _number(median_of(runs, lambda own: own.q_median)), _number(median_of(runs, lambda own: own.q_min)),
            _number(median_of(runs, lambda own: own.dead_median), percent=True),
            _number(median_of(runs, lambda own: own.overflow_median), percent=True),
        )  # fmt: skip
    return table


def product_table(study: PrecisionStudy) -> Table | None:
    """One row per metered format and product: errors in their parts, and the loss they predict; None without."""
    rows = [(label, parts) for label in study.labels if (parts := parts_of(study.of(label)))]
    if not rows:
        return None
    gaps = {one.label: one for one in predictions(study)}
    found = agreement(list(gaps.values()), lambda one: one.gap)
    ranks = "" if found is None else f"; rank correlation of predicted and measured gap {found:+.2f}"
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False,
        caption="bias, dead, noise: % of the squared norm, all layers together, median over steps and seeds; "
        "predicted: rise of the loss by forward rounding up to step 100, to first order; gap: of the training loss to full "
        f"precision's in the last epoch{ranks}",
    )  # fmt: skip
    for name in ("format", "of"):
        table.add_column(name, no_wrap=True)
    for name in ("q", "bias", "dead", "noise", "predicted", "gap"):
        table.add_column(name, justify="right", no_wrap=True)
    for label, parts in rows:
        gap = gaps.get(label)
        for place, (kind, numbers) in enumerate(parts.items()):
            ends = (Text(""), Text(""))
            if place == 0 and gap is not None:
                ends = (_text(gap.gap, percent=False), _text(gap.measured, percent=False))
            q, *shares = numbers
            table.add_row(
                Text(label if place == 0 else ""),
                Text(kind),
                _number(q),
                *(_number(each, percent=True) for each in shares),
                *ends,
            )
    return table


def verdict_table(study: PrecisionStudy) -> Table:
    """One row per format: whether it trains, and the layers that lose most of their gradient to rounding."""
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False,
        caption="worst layers: rounded plainly, share of the non-zero gradient entries that became zero",
    )  # fmt: skip
    table.add_column("format", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    table.add_column("worst layers", overflow="fold")
    for one in verdicts(study):
        table.add_row(Text(one.format), Text(one.words), Text(worst_words(one)))
    return table


def gather_study(folder: Path, recipe: Recipe, study: FormatStudy, logistic: Sequence[Descent]) -> PrecisionStudy:
    """Everything below `folder`, with its headline."""
    runs, missing = gather(run_folders(folder / "runs"), folder, recipe, study)
    data = load_data(recipe)
    chance = 0.0 if data.task == "segmentation" else 1 / data.num_classes
    found = PrecisionStudy(
        name=f"{recipe.name}: number formats", headline="", recipe=recipe.model_dump(mode="json"), chance=chance, runs=runs,
        logistic=list(logistic), missing=missing, versions=versions(), hardware=hardware(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return found.model_copy(update={"headline": in_words(found)})


def run(arguments: Sequence[str]) -> int:
    """Parse, train, show."""
    given = parse_with_recipe(PrecisionArguments, arguments, "precision")
    recipe, output, study = given.fields, given.output, study_of(given)
    if given.jobs < 1:
        raise ValueError(f"--jobs must be 1 or more, got {given.jobs}")
    variants = format_variants(recipe, study, given.seeds)
    folder = given.out or Path("runs") / f"{recipe.name}-precision"
    if given.dry_run:
        return show_cost(variants, [folder / "runs" / one.folder for one in variants], (), given.jobs, output)
    to_run = [variant for variant in variants if not is_diverged(RunFolder(folder / "runs" / variant.folder))]
    outcomes = (
        run_study(to_run, folder, jobs=given.jobs, threads=given.threads, splits=(), quiet=output.silent)
        if to_run
        else []
    )
    failed = [one for one in outcomes if one.error is not None and not is_diverged(RunFolder(one.folder))]
    if outcomes and len(failed) == len(outcomes):
        return 1
    logistic = measure_descents(folder, study) if given.logistic else []
    found = gather_study(folder, recipe, study, logistic)
    found.write(folder / "precision.json")
    page = render_precision(found, folder / "precision.html")
    if output.json:
        print_json(found.model_dump(mode="json", by_alias=True))
    else:
        console.print(format_table(found))
        console.print(verdict_table(found))
        if (products := product_table(found)) is not None:
            console.print(products)
        console.print(f"page: {page}", soft_wrap=True, markup=False)
        console.print(found.headline, soft_wrap=True, markup=False)
    return 1 if failed else 0

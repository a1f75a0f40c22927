"""`trimtab train`: one recipe into one run folder."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from trimtab.cli.arguments import Output
from trimtab.cli.console import console, errors, print_json
from trimtab.cli.dry_run import show_cost
from trimtab.cli.progress import training_progress
from trimtab.cli.recipe_arguments import Fields, parse_with_recipe
from trimtab.datasets.reading import reading_told
from trimtab.runs.metric import metric_of
from trimtab.runs.training import train
from trimtab.studies.bearing import run_bearing, states_of
from trimtab.studies.curvature.track import run_track
from trimtab.studies.summary import BearingTrack
from trimtab.studies.variants import Variant, default_run

READING_EVERY = 5.0
"""Seconds between lines while pictures are read [ours]."""


@dataclass(frozen=True)
class TrainArguments:
    """Trains one recipe into a run folder. Every field of the recipe is an option; the value in RECIPE is the
    default shown. Ctrl-C stops between two steps; the same command goes on.

    Examples:
        trimtab train digits --method cram+ --epochs 10
        trimtab train cifar10-resnet20 --data.root DIR --method l1+cram+
        trimtab train digits --track gradients weights updates --out watched
    """

    recipe: tyro.conf.Positional[str]
    """A shipped name (trimtab list recipes), a YAML file, or a run folder."""
    fields: Fields
    out: Path | None = None
    """Run folder; default runs/NAME/METHOD/seedN, marked where a run of another recipe lies there. An interrupted run
    there goes on, a finished one is kept."""
    dry_run: bool = False
    """Say what would run and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def _validation(info: Mapping[str, Any]) -> str:
    """The quality on the validation split."""
    if "validation_bits_per_byte" in info:
        return (
            f"{info['validation_bits_per_byte']:.3f} bits per byte (perplexity {info['validation_perplexity']:.2f}, "
            f"{info['validation_accuracy']:.1%} of the bytes right)"
        )
    return f"{info['validation_accuracy']:.2%}"


def _borne(track: BearingTrack, info: Mapping[str, Any]) -> str:
    """What the finished network bears, and what looking cost."""
    metric = metric_of(info["task"])
    last = {"dense": track.dense[-1]} | {state: values[-1] for state, values in states_of(track).items()}
    told = ", ".join(f"{state} {'-' if value is None else metric.text(value)}" for state, value in last.items())
    cost = (
        ""
        if track.cost is None
        else f"; {len(track.epochs)} look{'s' * (len(track.epochs) > 1)}, {track.cost:.1%} of training's passes"
    )
    return f"bears on {track.images:,} validation examples ({metric.word}): {told}{cost}; in metrics.jsonl"


def run(arguments: Sequence[str]) -> int:
    """Parse and train."""
    given = parse_with_recipe(TrainArguments, arguments, "train")
    recipe, output = given.fields, given.output
    folder = given.out or default_run(recipe)

    def tell(line: str) -> None:
        errors.print(line, soft_wrap=True, highlight=False, markup=False)

    if given.dry_run:
        return show_cost([Variant(recipe.method, recipe)], [folder], (), 1, output)

    last = time.monotonic()

    def reading(done: int, total: int) -> None:
        nonlocal last
        if not output.silent and time.monotonic() - last > READING_EVERY:
            last = time.monotonic()
            tell(f"reading pictures: {done:,} of {total:,}")

    title = f"{recipe.method} seed {recipe.seed}"
    with training_progress(title, quiet=output.silent or "RANK" in os.environ) as report, reading_told(reading):
        result = train(recipe, folder, report, None if output.silent else tell)
    info = result.info()
    if int(os.environ.get("RANK", "0")) > 0:  # under torchrun one process speaks
        return 0
    tracked = result.gradients_folder.is_dir()
    curvature = run_track(result, recipe.method)
    bearing = run_bearing(result, recipe.method)
    lacking = (
        ({"gradients", "weights", "updates"} & set(recipe.track) and not tracked)
        or ("curvature" in recipe.track and curvature is None)
        or ("bearing" in recipe.track and bearing is None)
    )
    if lacking:
        errors.print(f"{folder} was finished without tracking; choose another --out to track", soft_wrap=True)
    seen = f" ({info['validation_accuracy_views']:.2%} with {info['views']} views)" if "views" in info else ""
    if output.json:
        print_json({"folder": str(folder), **info})
    else:
        console.print(
            f"{recipe.method}, seed {recipe.seed}: {info['epochs']} epochs, training loss {info['train_loss']:.4f}, "
            f"validation {_validation(info)}{seen}, "
            f"{info.get('process_seconds', 0) / 60:.1f} minutes of processor time"
        )
        console.print(f"run folder: {folder}   next: trimtab prune {folder}", soft_wrap=True)
        if tracked:
            console.print(f"gradients: trimtab gradients {folder}", soft_wrap=True)
        if bearing is not None:
            console.print(_borne(bearing, info), soft_wrap=True)
        if curvature is not None:
            values = curvature.eigenvalues
            console.print(
                f"curvature on {curvature.batch:,} images: largest eigenvalue {values[0]:.3g} after epoch "
                f"{curvature.epochs[0]}, {values[-1]:.3g} at the end (greatest {max(values):.3g}); in metrics.jsonl",
                soft_wrap=True,
            )
    return 0

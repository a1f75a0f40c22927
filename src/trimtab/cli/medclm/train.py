"""`trimtab medclm train`."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.cli.dry_run import Part, show_parts
from trimtab.cli.progress import measuring_progress
from trimtab.medclm.training.foresee import foresee_training
from trimtab.medclm.training.options import TrainOptions
from trimtab.medclm.training.run import tower_of
from trimtab.medclm.training.run import train as train_run
from trimtab.observe import GradientTracker
from trimtab.penalties import VarianceAmplifier
from trimtab.runs.machine import hardware, versions


@dataclass(frozen=True)
class TrainArguments:
    """Trains a vision-language model on a built set. Interrupted, the same command goes on where the last checkpoint
    stands.

    Examples:
        trimtab medclm train SET --out RUN
        trimtab medclm train SET --out RUN --plain 0.5 --track
        trimtab medclm train SET --out RUN --model NAME
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `trimtab medclm build` wrote."""
    out: Path
    """Folder of the run."""
    options: Annotated[TrainOptions, tyro.conf.arg(name="")] = TrainOptions()
    var: float = 0.0
    """Strength of VarianceAmplifier (VAR) on the trained weights; 0 is off."""
    track: bool = False
    """Write statistics of the gradients into OUT."""
    dry_run: bool = False
    """Say how many steps there would be and about how long they would take, from a few of them; keeps nothing."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def train(arguments: Sequence[str]) -> int:
    """Parse and train."""
    given = parse(TrainArguments, arguments, "medclm train")
    if given.dry_run:
        return _foreseen(given)
    found = train_with_levers(given)
    if int(os.environ.get("RANK", "0")):  # the first process speaks for all
        return 0
    if given.output.json:
        print_json(found)
        return 0
    console.print(
        f"{found['steps']} steps in {found['seconds']:.0f} s, {found['parameters']:,} parameters, {found['rows']:,} rows",
        highlight=False,
    )
    console.print(
        f"model: {given.out / 'model'}; decisions of the curriculum: {given.out / 'stages.jsonl'}", soft_wrap=True
    )
    console.print(f"next: trimtab medclm evaluate {given.out}", soft_wrap=True)
    return 0


def _foreseen(given: TrainArguments) -> int:
    found = foresee_training(given.folder, given.out, given.options)
    facts: dict[str, Any] = {"training rows": found.rows, "training pictures": found.pictures}
    if found.state != "new":
        facts["there already"] = "a finished run" if found.state == "finished" else "a run that would go on"
    parts = [Part(f"steps of {given.options.batch} rows", found.steps, found.step_seconds)]
    if found.epochs:
        parts.insert(0, Part("epochs of the vision tower", found.epochs, found.epoch_seconds))
    return show_parts(parts, given.out, given.output, facts)


def train_with_levers(given: TrainArguments) -> dict[str, Any]:
    """Train as told."""
    levers = [VarianceAmplifier(strength=given.var)] if given.var else []
    tracker = GradientTracker(folder=given.out, overwrite=True) if given.track else None
    silent = given.output.silent or int(os.environ.get("RANK", "0")) > 0
    if given.options.tower_epochs:
        with measuring_progress("pretrain the vision tower", None, quiet=silent) as report:
            tower_of(
                given.folder, given.out, given.options, lambda *told: report(told[0], _shown("epoch", *told), told[1])
            )
    with measuring_progress(f"train {given.options.schedule}", None, quiet=silent) as report:

        def progress(step: int, steps: int, loss: float | None) -> None:
            report(step, _shown("step", step, steps, loss), steps)

        made_with = {
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "versions": versions(),
            "hardware": hardware(),
        }  # fmt: skip
        return train_run(given.folder, given.out, given.options, levers, tracker, progress, made_with)


def _shown(unit: str, done: int, total: int, loss: float | None) -> str:
    return f"{unit} {done}/{total}" + ("" if loss is None else f"  loss {float(loss):.3f}")

"""What a study set out to run, written before its first run starts, so that what is missing can be told later."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pydantic import Field

from trimtab.inputs import shortened
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.contrasts import Contrast
from trimtab.studies.documents import Document, Record
from trimtab.studies.summary import Missing, Why
from trimtab.studies.variants import Variant, run_label

FILE = "study.json"
DEPTH = 3
"""A run lies so many folders below its study: runs, label, seed."""


class PlannedRun(Record):
    """One run that was asked for."""

    label: str
    seed: int
    folder: str = Field(description="run folder, relative to the plan")


class Plan(Document):
    """The runs of the last command that trained into the folder. Written as `study.json`."""

    schema_: str = Field(default="trimtab.study/1", alias="schema")
    runs: list[PlannedRun]
    contrasts: list[Contrast] = Field(default=[], description="named before the runs")


def write_plan(variants: Sequence[Variant], folder: Path, contrasts: Sequence[Contrast] = ()) -> None:
    """Write what is about to be run into the study's folder; an earlier plan is replaced."""
    runs = [PlannedRun(label=v.label, seed=v.recipe.seed, folder=f"runs/{v.folder}") for v in variants]
    Plan(runs=runs, contrasts=list(contrasts)).write(folder / FILE)


def _plan(folder: Path) -> tuple[Path, Plan] | None:
    """The plan in `folder` or in a study that holds it, with the study's folder."""
    inside = folder.resolve()
    for root in (inside, *inside.parents[:DEPTH]):
        if (root / FILE).is_file():
            return root, Plan.read(root / FILE)
    return None


def planned_contrasts(folder: Path) -> list[Contrast]:
    """The contrasts that the study in `folder`, or the one that holds it, named beforehand; none without a plan.

    Raises:
        ValueError: the plan is damaged.
    """
    found = _plan(folder)
    return [] if found is None else found[1].contrasts


def planned_runs(folder: Path) -> dict[Path, PlannedRun]:
    """The planned runs at or below `folder`, by path, from the plan in it or in a study that holds it; none without a plan.

    Raises:
        ValueError: the plan is damaged.
    """
    found = _plan(folder)
    if found is None:
        return {}
    root, plan = found
    runs = {(root / run.folder).resolve(): run for run in plan.runs}
    return {path: run for path, run in runs.items() if path.is_relative_to(folder.resolve())}


def missing_runs(
    folders: Sequence[RunFolder], planned: Mapping[Path, PlannedRun], done: Collection[Path], root: Path
) -> list[Missing]:
    """Every run that was planned or begun and is not among `done`, with the reason.

    Args:
        folders: the run folders that exist.
        planned: the runs that were asked for, as `planned_runs` gives them.
        done: paths of the runs that are whole.
        root: what the paths are relative to.
    """
    begun = {folder.path.resolve(): folder for folder in folders}
    whole = {path.resolve() for path in done}
    return [
        _missing(path, begun.get(path), planned.get(path), root)
        for path in dict.fromkeys([*planned, *begun])
        if path not in whole
    ]


def in_words(missing: Sequence[Missing], done: int) -> str:
    """How many runs are missing of all and why, as the start of a sentence; empty where none is.

    Args:
        missing: as `missing_runs` gives them.
        done: how many runs are whole.

    Example:
        >>> in_words([Missing(method="var", seed=1, folder="runs/var/seed1", why="not started")], 3)
        'Incomplete, 1 of 4 runs is missing (1 not started)'
    """
    if not missing:
        return ""
    counts = Counter(run.why for run in missing)
    reasons = ", ".join(f"{count} {why}" for why, count in counts.items())
    verb = "is" if len(missing) == 1 else "are"
    return f"Incomplete, {len(missing)} of {len(missing) + done} runs {verb} missing ({reasons})"


def _missing(path: Path, folder: RunFolder | None, planned: PlannedRun | None, root: Path) -> Missing:
    recipe = None if folder is None else folder.recipe
    if planned is not None:
        method, seed = planned.label, planned.seed
    else:
        assert recipe is not None
        method, seed = run_label(recipe), recipe.seed
    why: Why
    error = path / "error.txt"
    if error.is_file():
        lines = error.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why, detail = "failed", shortened(lines[-1] if lines else "", 200)
    elif folder is None or recipe is None:
        why, detail = "not started", ""
    elif not folder.finished:
        why, detail = "unfinished", f"{len(folder.metrics())} of {recipe.epochs} epochs"
    else:
        why, detail = "not measured", ""
    return Missing(
        method=method, seed=seed, folder=Path(os.path.relpath(path, root.resolve())).as_posix(), why=why, detail=detail
    )

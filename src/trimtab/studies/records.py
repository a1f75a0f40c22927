"""What stays of a finished run in one small file, so that a study goes on, and is reported, without its run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, get_args

from pydantic import Field, ValidationError, model_validator

from trimtab.checks import number
from trimtab.datasets.dataset import Task
from trimtab.files import alone, write_text
from trimtab.inputs import named, utf8
from trimtab.runs.loading import load_data
from trimtab.runs.metric import Metric, metric_of
from trimtab.runs.recipe import Recipe, recipe_from
from trimtab.runs.run_folder import RunFolder, changed, training_identity
from trimtab.studies.bearing import run_bearing
from trimtab.studies.curvature.track import run_track
from trimtab.studies.documents import Document
from trimtab.studies.gradients.dynamics import run_dynamics, without_curves
from trimtab.studies.prune_run import PrunedRun, Split, asked, measured_as, pruned_file, read_pruned, unlike
from trimtab.studies.summary import BearingTrack, CurvatureTrack, Dynamics, Run
from trimtab.studies.variants import Variant

LIMIT = 50_000
"""Bytes that a record should not exceed [ours]: beyond them the layers' curves go, then epochs between others."""
WIDTH = 160
"""Characters up to which a part of the file stands on one line."""
WORKING = ".working"
"""Folder of the locks, beside the records; it tells git to leave it alone."""


class RunRecord(Document):
    """One finished run: recipe, `run.json`, metrics, and what pruning it gave, on each split that was measured.

    Raises:
        ValueError: (when read) the recipe does not hold, the run is not finished, or nothing was measured.
    """

    schema_: Literal["trimtab.run/1"] = Field(default="trimtab.run/1", alias="schema")
    label: str = Field(description="name in tables and figures")
    recipe: dict[str, Any] = Field(description="resolved, without the place of the data")
    info: dict[str, Any] = Field(description="as in run.json: status, steps, seconds, losses, versions, hardware")
    metrics: list[dict[str, Any]] = Field(description="one row per epoch, as in metrics.jsonl")
    measured: dict[Split, PrunedRun] = Field(min_length=1)
    dynamics: Dynamics | None = Field(default=None, description="of a tracked run")
    curvature: CurvatureTrack | None = Field(default=None, description="of a run whose curvature was tracked")
    bearing: BearingTrack | None = Field(default=None, description="of a run whose bearing was tracked")
    left_out: list[str] = Field(default=[], description="what was left out to keep the file small")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.info.get("status") != "finished":
            raise ValueError(f"info.status must be 'finished', got {self.info.get('status')!r}")
        for split, pruned in self.measured.items():
            said = (pruned.settings.get("split"), pruned.histogram.method)
            if said != (split, self.label):
                raise ValueError(
                    f"measured.{split} must be {self.label!r} on that split, got {said[1]!r} on {said[0]!r}"
                )
        self.run("")
        if "task" in self.info:
            self.task()
        return self

    @cached_property
    def resolved(self) -> Recipe:
        """The recipe, checked."""
        return recipe_from(self.recipe, "recipe")

    def run(self, folder: str) -> Run:
        """The row of a summary; ValueError names what `info` lacks."""
        fields = ("epochs", "steps", "train_seconds", "step_seconds", "train_loss", "validation_accuracy")
        if missing := [name for name in fields if name not in self.info]:
            raise ValueError(f"info lacks {missing[0]}")
        return Run(
            method=self.label,
            seed=self.resolved.seed,
            folder=folder,
            **{name: self.info[name] for name in fields},
            validation_bits_per_byte=self.info.get("validation_bits_per_byte"),
            levers=self.info.get("levers", {}),
        )

    def task(self) -> tuple[Metric, float, list[str]]:
        """Metric, what guessing reaches, and remarks of the run's data; from the data themselves for runs of before these
        were written.
        """
        if "task" in self.info:
            task, classes, notes = self.info["task"], self.info["classes"], [str(note) for note in self.info["notes"]]
            if task not in get_args(Task) or type(classes) is not int or classes < 1:
                raise ValueError(f"task {task!r} with {classes!r} classes")
            chance = self.info.get("chance", 0.0 if task == "segmentation" else 1 / classes)
            return metric_of(task), number("chance", chance, least=0), notes
        data = load_data(self.resolved)
        return metric_of(data.task), data.chance, list(data.notes)

    def text(self) -> str:
        """The file: each part on one line where it fits; what makes it too large is left out and named."""
        found = self
        if _size(found) > LIMIT and found.dynamics is not None:
            found = found.model_copy(
                update={
                    "dynamics": without_curves(found.dynamics),
                    "left_out": [*found.left_out, "the layers' curves of the gradients' dynamics"],
                }
            )
        spare = LIMIT - _size(found.model_copy(update={"metrics": []}))
        size = len(_lines(found.metrics).encode())
        if _size(found) > LIMIT and size > spare:
            every = -(-size // max(spare - 200, 1))
            kept = [row for place, row in enumerate(reversed(found.metrics)) if place % every == 0][::-1]
            text = f"metrics of all but every {every}th epoch"
            found = found.model_copy(update={"metrics": kept, "left_out": [*found.left_out, text]})
        return _lines(_data(found)) + "\n"

    def write(self, path: Path) -> None:
        """Write to a temporary name beside `path`, then rename."""
        write_text(path, self.text())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record; ValueError names the file and the first thing that does not fit."""
        with named(path, "is damaged or no record of a run; delete it to have the run done again"):
            try:
                return cls.model_validate_json(utf8(path))
            except ValidationError as error:
                first = error.errors()[0]
                where = ".".join(map(str, first["loc"]))
                raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


def _data(record: RunRecord) -> dict[str, Any]:
    return {"schema": record.schema_, **record.model_dump(mode="json", by_alias=True, exclude_defaults=True)}


def _size(record: RunRecord) -> int:
    return len(_lines(_data(record)).encode())


def _lines(value: Any, depth: int = 1) -> str:
    """JSON whose parts stand on lines of their own where they are long, for small differences under version control."""
    flat = json.dumps(value)
    if not isinstance(value, dict | list) or len(flat) <= WIDTH:
        return flat
    if isinstance(value, list):
        if not any(isinstance(item, dict | list) for item in value):
            return flat
        parts = [_lines(item, depth + 1) for item in value]
    else:
        parts = [f"{json.dumps(key)}: {_lines(item, depth + 1)}" for key, item in value.items()]
    margin = " " * depth
    opening, closing = "[]" if isinstance(value, list) else "{}"
    return f"{opening}\n" + ",\n".join(margin + part for part in parts) + f"\n{margin[1:]}{closing}"


def record_of(folder: RunFolder, measured: Mapping[Split, PrunedRun]) -> RunRecord:
    """What to keep of a finished run.

    Args:
        folder: the run.
        measured: what pruning it gave, by split.

    Raises:
        ValueError: a file of the folder is damaged.
    """
    label = next(iter(measured.values())).histogram.method
    recipe = folder.recipe.plain(mode="json")
    recipe["data"]["root"] = None
    with named(folder.path / "run.json"):
        return RunRecord(
            schema="trimtab.run/1",
            label=label,
            recipe=recipe,
            info=folder.info(),
            metrics=folder.metrics(),
            measured=dict(measured),
            dynamics=run_dynamics(folder, label),
            curvature=run_track(folder, label),
            bearing=run_bearing(folder, label),
        )


def folder_record(folder: RunFolder, split: Split) -> RunRecord | None:
    """The record of a run folder that is finished and measured on `split`; None otherwise."""
    file = pruned_file(folder, split)
    if not file.is_file():
        return None
    pruned = read_pruned(file)  # a damaged file is named whatever else the folder lacks
    return record_of(folder, {split: pruned}) if folder.finished else None


class Records:
    """A folder of records, one JSON file per run: LABEL/seedN.json.

    Several studies, jobs and processes may share it: what one has finished the others take as done, and a run that one
    is at is not begun by another.

    Args:
        folder: made when the first record is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def file(self, variant: Variant) -> Path:
        """Where the record of a run lies."""
        return self.folder / f"{variant.folder}.json"

    def working_on(self, variant: Variant) -> AbstractContextManager[None]:
        """Keep other processes off this run; `trimtab.files.HeldError` when one is at it."""
        ignored = self.folder / WORKING / ".gitignore"
        if not ignored.is_file():
            write_text(ignored, "*\n")
        return alone(
            self.folder / WORKING / variant.folder, f"running seed {variant.recipe.seed} of {variant.label} in"
        )

    def done(self, variant: Variant, splits: Sequence[Split]) -> RunRecord | None:
        """The record of the run, when it is whole: finished, and measured on every one of `splits`, fine-tuned if asked for.

        Raises:
            ValueError: the file is damaged, or is the record of another recipe or of other pruning settings.
        """
        file = self.file(variant)
        if not file.is_file():
            return None
        record = RunRecord.read(file)
        changes = changed(
            {"label": record.label, **training_identity(record.resolved)},
            {"label": variant.label, **training_identity(variant.recipe)},
        )
        if changes:
            raise ValueError(f"{file} is the record of another run ({changes}); choose another folder of records")
        for split in splits:
            if split not in record.measured:
                return None
            old = {key: value for key, value in record.measured[split].settings.items() if key != "network"}
            new = measured_as(variant.recipe, split, variant.label)
            if new["finetune"] and not asked(old)["finetune"]:
                return None
            if changes := unlike(old, new):
                raise ValueError(
                    f"{file} was measured with other pruning settings ({changes}); give these, or choose another folder "
                    "of records"
                )
        return record

    def write(self, variant: Variant, record: RunRecord) -> None:
        """Keep the record of a run."""
        record.write(self.file(variant))

    @property
    def files(self) -> list[Path]:
        """The records that are there."""
        return sorted(self.folder.glob("*/seed*.json"), key=lambda file: file.with_suffix(""))

    def under(self, study: Path) -> dict[Path, RunRecord]:
        """Every record by the folder that its run has, or would have, in the folder of a study.

        Raises:
            ValueError: one is damaged.
        """
        return {
            study / "runs" / file.relative_to(self.folder).with_suffix(""): RunRecord.read(file) for file in self.files
        }

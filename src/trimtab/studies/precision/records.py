"""What a study of number formats found: quality over seeds, and what rounding did to the gradients on the way."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from trimtab.frames import frame, html_table
from trimtab.observe import read_table
from trimtab.runs.precision_section import ROUNDED
from trimtab.runs.recipe import Recipe
from trimtab.runs.run_folder import INCIDENTAL, RunFolder
from trimtab.runs.tracked import (
    Matrix,
    consecutive,
    joined,
    median,
    rounded,
    tracked,
)
from trimtab.studies.documents import Document, Record
from trimtab.studies.latex import best_of, cell, escaped, framed, spread
from trimtab.studies.plan import missing_runs, planned_runs
from trimtab.studies.precision.logistic import Descent
from trimtab.studies.precision.on_test import quality_on_test
from trimtab.studies.precision.products import COLUMNS, ProductError, early, product_errors
from trimtab.studies.precision.variants import BASELINE, FormatStudy, Setting, setting_of, step_field
from trimtab.studies.statistics import estimate, paired_difference
from trimtab.studies.summary import Missing

SCHEMA = "trimtab.precision/1"
COMPARED = {*ROUNDED, "matmul", "rounding", "scaling", "compensate", "meter_every"}
"""Fields of the section `precision` in which the runs of one study may differ."""
MEASURED = ("projection", "dead", "overflow", "noise_to_signal")


class LayerShrinkage(Record):
    """What rounding did to one layer's gradient."""

    name: str
    q: float | None = Field(description="projection q, median over the metered steps")
    dead: float | None = Field(description="share of the non-zero entries that became zero, median over the steps")
    overflow: float | None = Field(description="share of the non-zero entries beyond the largest number, median")
    curve: list[float | None] = Field(description="per point: q; null where the gradient was zero or not finite")
    dead_curve: list[float | None] = Field(
        default=[], description="per point: share that became zero; empty in documents of earlier versions"
    )


class ShrinkageCurves(Record):
    """What rounding did to the gradients of one run, in at most 120 points; a point is the median of consecutive steps."""

    steps: list[int] = Field(description="per point: the last of its optimizer steps, counted from 0")
    q: list[float | None] = Field(description="per point: projection q of all gradients together")
    dead: list[float | None]
    overflow: list[float | None]
    noise: list[float | None] = Field(description="per point: noise-to-signal ratio")
    layers: list[LayerShrinkage] = Field(description="in the network's order")
    q_min: float | None = Field(description="least q of all gradients together at a metered step")
    q_median: float | None = Field(description="median over the metered steps, as the next two")
    dead_median: float | None = None
    overflow_median: float | None = None
    least_layer: str | None = Field(description="layer of the least median q")


class FormatRun(Setting):
    """One run of the study."""

    label: str = Field(description="what is set, in words")
    seed: int
    folder: str
    status: Literal["finished", "diverged"] = Field(description="diverged: the training loss was not finite")
    train_loss: list[float] = Field(description="mean training loss of each epoch")
    validation_accuracy: float | None
    validation_loss: float | None
    test_accuracy: float | None
    test_loss: float | None
    shrinkage: ShrinkageCurves | None = Field(description="null where nothing was rounded or metered")
    errors: list[ProductError] = Field(
        default=[], description="of a metered run: by product, operand or kind, and layer"
    )
    early_gap: float | None = Field(
        default=None, description="rise of the loss by forward rounding, to first order; median up to step 100"
    )
    early_error: float | None = Field(
        default=None,
        description="squared error of products, or gradients, over the squared norm; median up to step 100",
    )

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, data: Any) -> Any:
        """Documents of versions that kept what is set in the label alone."""
        if isinstance(data, dict) and "format" not in data and "label" in data:
            data = {**Setting.from_text(str(data["label"])).model_dump(), **data}
        return data

    @property
    def setting(self) -> Setting:
        """What is set."""
        return Setting(**{name: getattr(self, name) for name in Setting.model_fields})


class PrecisionStudy(Document):
    """Everything that the table and the page show. Written as `precision.json`."""

    schema_: str = Field(default=SCHEMA, alias="schema")
    name: str
    headline: str
    recipe: dict[str, Any]
    chance: float
    runs: list[FormatRun]
    logistic: list[Descent]
    missing: list[Missing] = Field(
        default=[], description="runs that the study planned or began and that are not in it"
    )
    created: str = Field(
        default="", description="ISO 8601, UTC; empty in documents of earlier versions, as the next two"
    )
    versions: dict[str, str] = Field(default={})
    hardware: dict[str, str | int | float | None] = Field(default={})
    unfinished: list[str] = Field(default=[], description="paths of such runs, in documents of earlier versions")

    def records(self) -> list[dict[str, Any]]:
        """One per run, with the fields of `FormatRun` but for the curves."""
        return [run.model_dump(exclude={"shrinkage", "train_loss", "errors"}) for run in self.runs]

    def to_pandas(self) -> Any:
        """`records()` as a pandas frame; ImportError where pandas (extra `frames`) is not installed."""
        return frame(self.records())

    def to_latex(self, *, caption: str = "", label: str = "tab:formats") -> str:
        """Formats as a LaTeX table with booktabs: test accuracy, and its difference to full precision paired over seeds, both
        as mean and half the 95 % interval.

        Bold: the highest accuracy, and every format whose paired difference to it has an interval that holds zero. Diverged
        runs give no number; where all did the cells hold "--".

        Args:
            caption: before what the numbers are; escaped.
            label: for `\\ref`.

        Raises:
            ValueError: no run finished.
        """
        column = {
            name: [(run.seed, 100 * run.test_accuracy) for run in self.of(name) if run.test_accuracy is not None]
            for name in self.labels
        }
        known = {name: values for name, values in column.items() if values}
        if not known:
            raise ValueError(f"the study {self.name!r} has no finished run")
        best, full = best_of(known), known.get(BASELINE, [])
        rows = []
        for name in self.labels:
            own = known.get(name)
            accuracy = None if own is None else estimate(value for _, value in own)
            change = None if own is None or name == BASELINE else paired_difference(own, full)
            rows.append([escaped(name), cell(accuracy, bold=name in best), cell(change, "+.1f")])
        text = f"{escaped(caption.rstrip('. '))}. " if caption else ""
        bold = "bold: the best, and what a $t$ test paired over seeds does not tell apart from it"
        said = f"{text}Number formats; {spread(len(values) for values in known.values())}; {bold}."
        heads = ["format", r"test accuracy, \%", "against full, points"]
        return framed(heads, rows, said, label)

    def _repr_html_(self) -> str:
        return html_table(self.records(), self.headline)

    @property
    def labels(self) -> list[str]:
        """Labels in order of first appearance."""
        return list(dict.fromkeys(run.label for run in self.runs))

    def of(self, label: str) -> list[FormatRun]:
        """The runs of a label."""
        return [run for run in self.runs if run.label == label]


def shrinkage_curves(columns: dict[str, Any]) -> ShrinkageCurves | None:
    """A meter's rows on gradients, drawn together; None where there are none.

    Of products with rounded operands q and noise are those of the weights' gradient, dead and overflow those of the gradient
    operand that it is made of.

    Args:
        columns: `ShrinkageMeter.table()`, column by column.
    """
    own = tracked(columns, "gradients", MEASURED)
    if own is None:
        own = tracked(columns, "wgrad", MEASURED)
        operand = tracked(columns, "wgrad gradient", MEASURED)
        if own is not None and operand is not None:
            for column in ("dead", "overflow"):
                own.values[column], own.together[column] = operand.values[column], operand.together[column]
    if own is None:
        return None
    bins = consecutive(len(own.steps))

    def middle(values: Matrix) -> float | None:
        return rounded(float(median(values)))

    layers = [
        LayerShrinkage(
            name=name,
            q=middle(own.values["projection"][row]),
            dead=middle(own.values["dead"][row]),
            overflow=middle(own.values["overflow"][row]),
            curve=joined(own.values["projection"][row], bins),
            dead_curve=joined(own.values["dead"][row], bins),
        )
        for row, name in enumerate(own.layers)
    ]
    q = own.together["projection"]
    least = min((layer for layer in layers if layer.q is not None), key=lambda layer: layer.q or 0.0, default=None)
    return ShrinkageCurves(
        steps=[int(own.steps[part][-1]) for part in bins],
        q=joined(q, bins),
        dead=joined(own.together["dead"], bins),
        overflow=joined(own.together["overflow"], bins),
        noise=joined(own.together["noise_to_signal"], bins),
        layers=layers,
        q_min=rounded(float(np.nanmin(q))) if np.isfinite(q).any() else None,
        q_median=middle(q),
        dead_median=middle(own.together["dead"]),
        overflow_median=middle(own.together["overflow"]),
        least_layer=None if least is None else least.name,
    )


def run_columns(folder: RunFolder) -> dict[str, Any]:
    """What a metered run's meter found, column by column; nothing of one that was not metered.

    Raises:
        ValueError: the meter's files are damaged.
    """
    if not folder.shrinkage_folder.is_dir():
        return {}
    table = read_table(folder.shrinkage_folder)
    wanted = dict.fromkeys(("step", "layer", "kind", *MEASURED, *COLUMNS))
    return {name: table[name].to_numpy() for name in wanted if name in table.column_names}


def _common(recipe: Recipe) -> dict[str, Any]:
    """What the runs of one study share."""
    section, leaf = step_field(recipe).split(".")
    data = recipe.model_dump(mode="json", exclude=INCIDENTAL | {"seed"})
    for field in COMPARED:
        data["precision"].pop(field)
    data["data"].pop("root")
    data[section].pop(leaf)
    return data


def _rate(recipe: Recipe) -> float:
    section, leaf = step_field(recipe).split(".")
    return float(getattr(getattr(recipe, section), leaf))


def is_diverged(folder: RunFolder) -> bool:
    """Whether the run ended in a loss that is not finite."""
    file = folder.path / "error.txt"
    return file.is_file() and file.read_bytes().startswith(b"FloatingPointError")


def format_run(folder: RunFolder, root: Path, rate: float) -> FormatRun:
    """What one run left, finished or diverged.

    Args:
        folder: the run.
        root: what the run's path is relative to.
        rate: learning rate of the study's runs without a step factor.
    """
    recipe, rows = folder.recipe, folder.metrics()
    setting = setting_of(recipe.precision, float(f"{_rate(recipe) / rate:.6g}"))
    tested = quality_on_test(folder) if folder.finished else {}
    last = rows[-1] if rows and folder.finished else {}
    columns = run_columns(folder)
    early_gap, early_error = early(columns)
    return FormatRun(
        label=setting.text(),
        **setting.model_dump(),
        seed=recipe.seed,
        folder=folder.path.relative_to(root).as_posix(),
        status="finished" if folder.finished else "diverged",
        train_loss=[row["train_loss"] for row in rows],
        validation_accuracy=last.get("validation_accuracy"),
        validation_loss=last.get("validation_loss"),
        test_accuracy=tested.get("accuracy"),
        test_loss=tested.get("loss"),
        shrinkage=shrinkage_curves(columns) if columns else None,
        errors=product_errors(columns),
        early_gap=early_gap,
        early_error=early_error,
    )


def gather(
    folders: Sequence[RunFolder], root: Path, recipe: Recipe, study: FormatStudy
) -> tuple[list[FormatRun], list[Missing]]:
    """The finished and diverged runs among `folders`, the study's own labels first; and those that are missing.

    Args:
        folders: run folders, also of earlier studies in the same folder with other formats.
        root: what paths are relative to.
        recipe: what all runs share.
        study: whose labels come first, in their order.

    Raises:
        ValueError: runs that differ in more than number format, learning rate and seed, or none that is finished.
    """
    runs, expected = [], _common(recipe)
    for folder in folders:
        found = _common(folder.recipe)
        section = folder.recipe.precision
        tensors = {field for field in ROUNDED if getattr(section, field)}
        if section.rounds and tensors != (set() if section.matmul else set(study.tensors)):
            raise ValueError(
                f"{folder.path} rounds other tensors than {', '.join(study.tensors)}; choose another --out"
            )
        differing = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if differing:
            raise ValueError(
                f"{folder.path} is of another study: {', '.join(differing)} differ; choose another folder with --out"
            )
        if folder.finished or is_diverged(folder):
            runs.append(format_run(folder, root, _rate(recipe)))
    missing = missing_runs(folders, planned_runs(root), [root / run.folder for run in runs], root)
    if not any(run.status == "finished" for run in runs):
        raise ValueError(f"no run under {root} is finished ({len(missing)} unfinished, {len(runs)} diverged)")
    order = {label: place for place, label in enumerate(study.labels())}
    return sorted(runs, key=lambda run: (order.get(run.label, len(order)), run.label, run.seed)), missing

"""`trimtab curvature`: how curved the loss is around finished networks, dense and pruned."""

from __future__ import annotations

import datetime
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, errors, print_json
from trimtab.cli.dry_run import Part, show_parts
from trimtab.cli.progress import measuring_progress
from trimtab.report import render_curvature
from trimtab.report.weights.terminal import curvature_table
from trimtab.runs.machine import hardware, versions
from trimtab.runs.run_folder import RunFolder
from trimtab.studies.comparison import run_folders
from trimtab.studies.curvature.conclusions import curvature_headline
from trimtab.studies.curvature.measuring import LANDSCAPE_POINTS, MeasuredRun
from trimtab.studies.curvature.records import (
    CurvatureRow,
    CurvatureSettings,
    CurvatureSummary,
    Landscape,
    Measured,
)
from trimtab.studies.curvature.track import run_track
from trimtab.studies.plan import in_words, missing_runs, planned_runs
from trimtab.studies.summary import Missing


@dataclass(frozen=True)
class CurvatureArguments:
    """Measures largest eigenvalues, trace, spectral density and sharpness of the training loss around finished
    networks, dense and pruned, each with its error. The networks are not changed; the same command goes on after an
    interruption.

    Examples:
        trimtab curvature runs/digits/sgd runs/digits/var
        trimtab curvature runs/digits --sparsities 0,0.5,0.9 --out curvature
        trimtab curvature runs/digits --landscape --examples 256
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Finished run folders, or folders that hold such; several are compared."""
    measure: Annotated[CurvatureSettings, tyro.conf.arg(name="")] = CurvatureSettings()
    landscape: bool = False
    """Also draw the loss on a plane through the dense weights, for the first seed of each method."""
    split: Literal["validation", "test"] = "validation"
    """What accuracy is measured on."""
    root: str | None = None
    """Where the data lie, if not where the recipes say."""
    out: Path | None = None
    """Where curvature.json, curvature.html and the measurements go; default FIRST_RUN/curvature."""
    dry_run: bool = False
    """Say what would be measured and what it would cost here, and stop."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def finished_runs(folders: Sequence[Path], out: Path) -> tuple[list[RunFolder], list[Missing]]:
    """Every finished run at or below the folders, and the others with their paths from `out`.

    Raises:
        ValueError: none is finished, or they are of different data or networks.
    """
    runs = list({run.path.resolve(): run for folder in folders for run in run_folders(folder)}.values())
    finished = [run for run in runs if run.finished]
    if not finished:
        raise ValueError(f"no finished run among {', '.join(map(str, folders))}; train one first")
    first = finished[0]
    for run in finished[1:]:
        for part in ("data", "model"):
            one, other = (item.recipe.model_dump(mode="json")[part] for item in (first, run))
            one.pop("root", None), other.pop("root", None)
            if one != other:
                raise ValueError(f"{first.path} and {run.path} differ in {part}; measure them apart")
    planned = {path: run for folder in folders for path, run in planned_runs(folder).items()}
    return finished, missing_runs(runs, planned, [run.path for run in finished], out)


def measured(runs: Sequence[MeasuredRun], given: CurvatureArguments) -> list[Measured]:
    """All measurements, the first sparsity of every run before the second."""
    places = [(sparsity, run) for sparsity in sorted(given.measure.sparsities) for run in runs]
    found = []
    with measuring_progress("networks", len(places), quiet=given.output.silent) as note:
        for done, (sparsity, run) in enumerate(places):
            found.append(run.measure(sparsity, lambda text, done=done: note(done, text)))  # type: ignore[misc]
        note(len(places), "")
    order = {run.label: place for place, run in reversed(list(enumerate(runs)))}
    return sorted(found, key=lambda one: (order[one.row.method], one.row.seed, one.row.sparsity))


def measured_landscapes(runs: Sequence[MeasuredRun], *, silent: bool) -> list[Landscape]:
    """One for the first seed of each method."""
    first = {run.label: run for run in reversed(runs)}
    found = []
    for run in (run for run in runs if first[run.label] is run):
        with measuring_progress(f"landscape of {run.label}", None, quiet=silent) as note:
            found.append(run.landscape(lambda done, points, note=note: note(done, "", points)))  # type: ignore[misc]
    return found


def _show_cost(runs: Sequence[MeasuredRun], given: CurvatureArguments, out: Path) -> int:
    """What is not kept yet, in products with the Hessian, timed on the first run."""
    networks = sum(not run.is_kept(sparsity) for run in runs for sparsity in given.measure.sparsities)
    product, loss = runs[0].costs()
    what = f"products with the Hessian, for {networks} networks"
    parts = [Part(what, networks * given.measure.most_products, product)]
    if given.landscape:
        methods = len({run.label for run in runs})
        parts.append(Part(f"losses on a plane, for {methods} methods", methods * LANDSCAPE_POINTS**2, loss))
    return show_parts(parts, out, given.output)


def run(arguments: Sequence[str]) -> int:
    """Parse, measure, show."""
    given = parse(CurvatureArguments, _numbers_apart(arguments), "curvature")
    if not given.runs:
        raise ValueError("name at least one finished run: trimtab curvature RUN [RUN ...]")
    out = given.out or given.runs[0] / "curvature"
    folders, missing = finished_runs(given.runs, out)
    runs = [MeasuredRun(folder, given.measure, out, given.split, given.root) for folder in folders]
    names = [(run.label, run.recipe.seed) for run in runs]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"method {twice[0]}, seed {twice[1]} occurs in several of these folders; measure them apart")
    if given.dry_run:
        return _show_cost(runs, given, out)
    found = measured(runs, given)
    rows = [one.row for one in found]
    landscapes = measured_landscapes(runs, silent=given.output.silent) if given.landscape else []
    pruned = [accuracy for run in runs for accuracy in run.pruned_accuracies()]
    first = runs[0]
    summary = CurvatureSummary(
        name=f"{first.recipe.name}: curvature",
        headline=". ".join(filter(None, (in_words(missing, len(runs)), curvature_headline(rows, pruned)))),
        missing=missing,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=_command(arguments, given),
        metric="dice" if first.data.task == "segmentation" else "accuracy",
        recipe=first.recipe.model_dump(mode="json"),
        settings=given.measure,
        versions=versions(),
        hardware=hardware(),
        rows=rows,
        pruned=pruned,
        densities=[one.density for one in found if one.density is not None],
        landscapes=landscapes,
        tracks=[track for run in runs if (track := run_track(run.folder, run.label)) is not None],
        notes=_notes(given, rows),
    )
    summary.write(out / "curvature.json")
    page = render_curvature(summary, out / "curvature.html")
    if given.output.json:
        print_json(summary.model_dump(mode="json", by_alias=True))
        return 0
    for sparsity in sorted({row.sparsity for row in rows}):
        console.print(curvature_table(rows, sparsity))
    console.print(f"page: {page}", soft_wrap=True, markup=False)
    console.print(summary.headline, soft_wrap=True, markup=False)
    left_out = sum(not row.converged for row in rows)
    if left_out:
        errors.print(f"{left_out} eigenvalue(s) did not converge: see their residuals, or raise --max-products")
    return 0


def _numbers_apart(arguments: Sequence[str]) -> list[str]:
    """`--sparsities 0,0.5` as `--sparsities 0 0.5`.

    Example:
        >>> _numbers_apart(["run", "--sparsities=0,0.5", "--out", "a,b"])
        ['run', '--sparsities', '0', '0.5', '--out', 'a,b']
    """
    words: list[str] = []
    inside = False
    for word in arguments:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            inside = name == "--sparsities"
        if inside and equals:
            words += [name, *value.split(",")]
        elif inside and not word.startswith("--"):
            words += word.split(",")
        else:
            words.append(word)
    return words


def _command(arguments: Sequence[str], given: CurvatureArguments) -> str:
    folders = {str(path) for path in given.runs} | {str(given.out), str(given.root)}
    words = ["DIR" if word in folders else word for word in arguments]
    return shlex.join(["trimtab", "curvature", *words])


def _notes(given: CurvatureArguments, rows: Sequence[CurvatureRow]) -> list[str]:
    settings = given.measure
    notes = [
        f"Curvature of the mean task loss on {settings.examples:,} training images without augmentation, the same for all "
        "networks; BatchNorm by its running statistics, no penalty, float32 or float64 as the network."
    ]
    if any(row.sparsity for row in rows):
        state = "BatchNorm re-estimated after pruning" if any(row.recalibrated for row in rows) else "as pruned"
        notes.append(f"Pruned networks: {state}; their curvature is that in the weights that are left.")
    return notes

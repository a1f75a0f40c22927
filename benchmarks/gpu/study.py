"""Part 3, the weights study at the papers' network: ResNet-18, CIFAR-10, 30 epochs, bfloat16, methods once, swept to 98 %."""

from __future__ import annotations

import multiprocessing
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from part import Part, start

SPARSITIES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
DECAYS = {5e-4: 1e-5, 5e-3: 1e-4}
"""Weight decay, and VAR's strength beside it."""
EPOCHS, LEAST_EPOCHS = 30, 10
"""Wanted; fewest that are still worth a table [ours]."""
COSTS = {"sgd": 1.0, "var": 1.05, "l1": 1.05, "cram+": 2.3, "l1+cram+": 2.3}
"""Plain steps' worth of a method's step, for planning alone."""
SIDE_BY_SIDE = 4
PRUNING, REPORT, STEP = 25.0, 12.0, 0.03
"""Seconds for sweeping one trained network, for summary and report, for a step that was not timed; for planning alone."""


def recipe(part: Part, data: Path) -> Any:
    """The shipped recipe of the papers' network in bfloat16, or its toy form."""
    from trimtab.studies import load_recipe

    settings: dict[str, Any] = {
        "data.root": str(data), "precision.autocast": "bf16", "epochs": EPOCHS, "pruning.sparsities": SPARSITIES,
        "pruning.controls": False, "validate_every": 10, "checkpoint_every": EPOCHS, "data.batch_size": 128,
        "l1.strength": 1e-4, "cram.rho": 0.15, "cram.sparsities": (0.5, 0.7, 0.8, 0.9, 0.95), "pruning.recalibrate_batches": 50,
    }  # fmt: skip
    if part.dry:
        settings |= {
            "model.name": "resnet8", "precision.autocast": "fp32", "epochs": 1, "checkpoint_every": 1, "data.batch_size": 16,
            "device": "cpu", "pruning.sparsities": (0.5, 0.98), "pruning.recalibrate_batches": 1,
        }  # fmt: skip
    return load_recipe("cifar10-resnet18").with_settings(settings)


def chosen(base: Any, *, dry: bool) -> list[Any]:
    """The runs in order of worth, one seed each."""
    from trimtab.studies import Variant

    runs = []
    for decay, strength in DECAYS.items():
        for method, own in {"sgd": {}, "var": {"var.strength": strength}}.items():
            given = {"sgd.weight_decay": decay, **own}
            label = f"{method}[{','.join(f'{key}={value:g}' for key, value in given.items())}]"
            runs.append(Variant(label, base.with_settings({"method": method, **given})))
    runs += [Variant(method, base.with_settings({"method": method})) for method in ("cram+", "l1", "l1+cram+")]
    return [runs[1], runs[-1]] if dry else runs


def _steps(settings: dict[str, Any], number: int, turns: Any, answers: Any, steps: int) -> None:
    """One of several processes that train at once: the first alone, then all."""
    import tempfile

    import torch

    from trimtab.runs.parallel import launch
    from trimtab.runs.recipe import Recipe
    from trimtab.runs.run_folder import RunFolder
    from trimtab.runs.training_run import TrainingRun

    given = Recipe.model_validate(settings)
    with tempfile.TemporaryDirectory() as scratch:
        run = TrainingRun(given, RunFolder(Path(scratch)), launch(given))
        stream = run.train_batches.epoch(0)
        run.stepper.set_learning_rate(0)

        def take(count: int) -> float:
            begun = time.perf_counter()
            for _ in range(count):
                run.stepper.step([next(stream)])
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return (time.perf_counter() - begun) / count

        take(5)
        turns.wait()
        alone = take(steps) if number == 0 else None
        turns.wait()
        answers.put((alone, take(steps)))


def side_by_side(
    part: Part, base: Any, processes: int = SIDE_BY_SIDE, steps: int = 40, patience: float = 60.0
) -> tuple[int, float]:
    """(processes to train in at once, seconds of a step of each), measured."""
    context = multiprocessing.get_context("spawn")
    turns, answers = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_steps, args=(base.model_dump(), number, turns, answers, steps), daemon=True)
        for number in range(processes)
    ]
    for worker in workers:
        worker.start()
    try:
        found = [answers.get(timeout=patience) for _ in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.join()
    alone = next(one for one, _ in found if one is not None)
    together = statistics.median(each for _, each in found)
    gain = processes * alone / together
    part.row(
        f"steps per second of {processes} runs side by side / of one alone", gain, None, step_ms=1e3 * alone,
        step_ms_side_by_side=1e3 * together,
    )  # fmt: skip
    return (processes, together) if gain > 1.05 else (1, alone)


def makespan(costs: list[float], jobs: int) -> float:
    """When the last ends, if `jobs` run at a time in the order given.

    >>> makespan([2.0, 2.0, 1.0, 1.0, 1.0], 4)
    2.0
    """
    ends = [0.0] * jobs
    for cost in costs:
        ends[ends.index(min(ends))] += cost
    return max(ends)


def fitting_epochs(seconds: float, step: float, steps_per_epoch: int, methods: list[str], jobs: int) -> int:
    """Epochs for which all methods fit into `seconds`, sweeps and report included, between the fewest and those wanted.

    >>> methods = ["cram+", "l1+cram+", "sgd", "var"]
    >>> [fitting_epochs(seconds, 0.02, 140, methods, 4) for seconds in (40.0, 200.0, 400.0)]
    [10, 25, 30]
    """
    sweeps = REPORT + PRUNING * makespan([1.0] * len(methods), jobs)
    per_epoch = step * steps_per_epoch * makespan([COSTS[method] for method in methods], jobs)
    return max(LEAST_EPOCHS, min(EPOCHS, int((seconds - sweeps) / per_epoch)))


def finished(part: Part, folder: Path, known: set[str]) -> None:
    """Rows of the runs that have been pruned since the last look."""
    from trimtab.studies import RunFolder
    from trimtab.studies.prune_run import read_pruned

    for file in sorted(folder.glob("runs/*/seed*/pruning-test.json")):
        if str(file) in known:
            continue
        known.add(str(file))
        pruned, info = read_pruned(file), RunFolder(file.parent).info()
        for recalibrated in (False, True):
            curve = {f"{row.sparsity:g}": row.accuracy for row in pruned.rows if row.recalibrated == recalibrated}
            part.row(
                f"{pruned.histogram.method}: test accuracy by sparsity, {'recalibrated' if recalibrated else 'as pruned'}",
                curve.get("0"), None, accuracy=curve, epochs=info.get("epochs"), train_seconds=info.get("train_seconds"),
            )  # fmt: skip


def main(part: Part) -> None:
    """Data, how many at once, how many epochs, the runs, summary and report."""
    from trimtab.studies import compare

    plain = part.folder / "cifar10.npz"
    if part.dry:
        from data import drawn

        drawn(plain)
    elif part.data is None:
        return part.row("study", missing="the data: benchmarks/gpu/data.npz (data.py makes it; --data names another)")
    else:
        from data import expand

        train, test = expand(part.data, plain)
        part.row("images", train=train, test=test)
    base, jobs = recipe(part, plain), 1
    if not part.dry:
        try:
            jobs, step = side_by_side(part, base)
        except Exception as error:  # no memory for so many, or one that hangs: the study goes on, one run at a time
            part.row("side by side", error=f"{type(error).__name__}: {error}")
            jobs, step = 1, STEP
    runs, known = chosen(base, dry=part.dry), set[str]()
    if jobs > 1:  # the longest first, so that none is left to run alone
        runs.sort(key=lambda run: -COSTS[run.recipe.method])
    if not part.dry:
        methods, steps = [run.recipe.method for run in runs], int(0.9 * train) // base.data.batch_size
        epochs = fitting_epochs(part.left, step, steps, methods, jobs)
        part.row("epochs", epochs, None, wanted=EPOCHS)
        settings = {"epochs": epochs, "checkpoint_every": epochs}
        runs = [replace(run, recipe=run.recipe.with_settings(settings)) for run in runs]

    def look(_: Any) -> None:
        finished(part, part.folder, known)
        if part.left < (0 if part.dry else 8):
            raise KeyboardInterrupt

    try:
        for outcome in compare(runs, part.folder, jobs=jobs, splits=("test",), report=look):
            if outcome.error is not None:
                part.row(f"{outcome.variant.label}: run", error=outcome.error.strip().splitlines()[-1])
    except KeyboardInterrupt:
        done = len(known)
        part.row("runs", done, None, left_out=f"time was up with {done} of {len(runs)} runs finished")
    finished(part, part.folder, known)
    plain.unlink()
    for checkpoint in part.folder.rglob("*checkpoint*"):
        shutil.rmtree(checkpoint, ignore_errors=True) if checkpoint.is_dir() else checkpoint.unlink()
    if known:
        part.group("summary", summarise)
        part.group("report", report)
    return None


def summarise(part: Part) -> None:
    """`summary.json` of the runs that were finished."""
    from trimtab.studies import assemble
    from trimtab.studies.comparison import run_folders

    found = assemble(run_folders(part.folder / "runs"), part.folder, name="gpu: cifar10-resnet18")
    found.write(part.folder / "summary.json")


def report(part: Part) -> None:
    """`report.html`; where plotly is missing, `trimtab.report.render` makes it at home from `summary.json`."""
    from trimtab.report import render
    from trimtab.studies import Summary

    render(Summary.read(part.folder / "summary.json"), part.folder / "report.html")


if __name__ == "__main__":
    start("study", main)

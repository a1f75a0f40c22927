"""Train and prune many variants side by side; what is finished is not done again."""

from __future__ import annotations

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trimtab.datasets.reading import reading_told
from trimtab.files import HeldError, alone, write_text
from trimtab.inputs import bad_input
from trimtab.runs.loading import load_data
from trimtab.runs.position import Progress
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.contrasts import Contrast
from trimtab.studies.fine_tuning import is_fine_tuned
from trimtab.studies.plan import write_plan
from trimtab.studies.prune_run import PrunedRun, Split, prune_run
from trimtab.studies.records import Records, record_of
from trimtab.studies.variants import Variant
from trimtab.studies.workers import Launcher, Workers, stop_asked, workers


@dataclass(frozen=True)
class Outcome:
    """How one run of a study ended: `error` is None when it went well."""

    variant: Variant
    folder: Path
    error: str | None


WAIT = 2.0
"""Seconds until a run that another process is at is looked at again [ours]."""


@dataclass(frozen=True)
class Standing:
    """How far a study is: runs that ended, all runs, the position of those at work, here or elsewhere, and what
    happened so far.

    Attributes:
        finished, total: counts.
        active: name of each run at work -> share done and a text, such as `40% epoch 3/8 loss 0.321`.
        ended: the runs that ended, in that order, each with how.
        kept: how many were finished before.
    """

    finished: int
    total: int
    active: dict[str, str]
    ended: tuple[str, ...] = ()
    kept: int = 0


def _progress_file(folder: Path) -> Path:
    return folder / ".progress"


def _show(file: Path, text: str) -> None:
    with contextlib.suppress(OSError):  # a display is not worth a run
        file.write_text(text)


def _work(variant: Variant, folder: Path, splits: tuple[Split, ...], records: Records | None) -> str | None:
    """Train and prune one variant; returns the error text, if any.

    Raises:
        HeldError: another process that shares the records is at this run.
    """
    if stop_asked():  # a pool hands out one run ahead
        raise KeyboardInterrupt
    try:
        if records is None:
            _train_and_prune(variant, folder, splits)
        else:
            with records.working_on(variant):
                if records.done(variant, splits) is None:  # another process may have done it meanwhile
                    records.write(variant, record_of(*_train_and_prune(variant, folder, splits)))
    except (KeyboardInterrupt, HeldError):
        raise
    except bad_input(ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return traceback.format_exc()
    finally:
        _progress_file(folder).unlink(missing_ok=True)
    return None


def _train_and_prune(
    variant: Variant, folder: Path, splits: tuple[Split, ...]
) -> tuple[RunFolder, dict[Split, PrunedRun]]:
    shown = _progress_file(folder)
    last = 0.0

    def now_and_then(text: str) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            _show(shown, text)

    def report(progress: Progress) -> None:
        loss = "" if progress.loss is None else f" loss {progress.loss:.3f}"
        now_and_then(f"{progress.step} {progress.steps} epoch {progress.epoch + 1}/{progress.epochs}{loss}")

    def reading(done: int, total: int) -> None:
        now_and_then(f"0 1 reading picture {done:,} of {total:,}")

    folder.mkdir(parents=True, exist_ok=True)
    with reading_told(reading):
        run = train(variant.recipe, folder, report)
    measured: dict[Split, PrunedRun] = {}
    for split in splits:
        _show(shown, f"1 1 pruning on {split}")

        def note(text: str, split: Split = split) -> None:
            _show(shown, f"1 1 pruning on {split}: {text}")

        measured[split] = prune_run(
            run, recipe=variant.recipe, label=variant.label, varied=variant.varied, split=split,
            data=load_data(variant.recipe), report=note,
        )  # fmt: skip
    return run, measured


def _standing(
    paths: dict[Path, Variant],
    outcomes: Sequence[Outcome],
    before: int,
    kept: Collection[Path],
    elsewhere: Collection[Path],
) -> Standing:
    active = {}
    for path, variant in paths.items():
        name = f"{variant.label} seed {variant.recipe.seed}"
        if path in elsewhere:
            active[name] = "0% in another process"
            continue
        try:
            step, steps, text = _progress_file(path).read_text().split(" ", 2)
            active[name] = f"{int(step) / max(int(steps), 1):.0%} {text}"
        except (OSError, ValueError):
            continue
    ended = tuple(
        f"{one.variant.label} seed {one.variant.recipe.seed} "
        + ("failed" if one.error is not None else "was finished before" if one.folder in kept else "done")
        for one in outcomes
    )
    return Standing(before + len(ended), before + len(paths), active, ended, before + len(kept))


def compare(
    variants: Sequence[Variant],
    folder: Path,
    *,
    jobs: int | None = None,
    threads: int | None = None,
    splits: tuple[Split, ...] = ("test",),
    records: Path | None = None,
    contrasts: Sequence[Contrast] = (),
    launcher: Launcher = "processes",
    address: str | None = None,
    report: Callable[[Standing], None] | None = None,
) -> list[Outcome]:
    """Train and prune every variant into `folder/runs/LABEL/seedN`, `jobs` at a time, in their order, here or on a Ray cluster.

    Finished runs are kept, interrupted ones go on from their checkpoint. A failing run does not stop the others; its error
    is written to `error.txt` in its folder. Before the first run starts `folder/study.json` says which were asked for, so
    that a report can name those that are missing.

    With `records`, each finished run leaves one small file there, and a run whose file is there is done, with or without a
    run folder. Several processes may share the records, each with a folder of its own: no run is done twice.

    Args:
        variants: what to run, in this order.
        folder: the study's folder.
        jobs: runs side by side; default 1, on a cluster as many as it has cores for.
        threads: of each job; default: the processor's cores divided among the jobs, on a cluster 1.
        splits: what to measure the pruned networks on.
        records: folder of the runs' records (`trimtab.studies.records`).
        contrasts: what the report is to judge; written into `study.json` before the first run.
        launcher: "processes" of this machine, or "ray": tasks of a cluster whose machines all see `folder`, the records and the
            data under the same paths. A run whose machine is lost goes on elsewhere from its checkpoint.
        address: of a Ray cluster's head, HOST:PORT or "auto"; default RAY_ADDRESS, failing that a cluster of this machine.
        report: called about twice a second with the `Standing`.

    Raises:
        ValueError: `jobs` or `threads` is not positive, no cluster answers at the address, another process is running the study
            in this folder, or a record is damaged or of another run; nothing is run then.
        ImportError: launcher ray without Ray.
        KeyboardInterrupt: Ctrl-C; every run at work has left a checkpoint.
    """
    if launcher == "ray":
        folder, records = folder.absolute(), None if records is None else records.absolute()
        variants = [_with_absolute_root(variant) for variant in variants]
    kept = None if records is None else Records(records)
    paths = {folder / "runs" / variant.folder: variant for variant in variants}
    left = {path: variant for path, variant in paths.items() if kept is None or kept.done(variant, splits) is None}
    team = workers(launcher, jobs, threads, folder, address)
    try:
        with alone(folder, "running the study in"):
            write_plan(variants, folder, contrasts)
            outcomes = _compare(left, len(paths) - len(left), team, splits, kept, report) if left else []
    finally:
        team.close()
    errors = {outcome.folder: outcome.error for outcome in outcomes}
    return [Outcome(variant, path, errors.get(path)) for path, variant in paths.items()]


def _with_absolute_root(variant: Variant) -> Variant:
    """Where the data lie does not depend on the folder that a worker stands in."""
    data = variant.recipe.data
    if data.root is None:
        return variant
    data = data.model_copy(update={"root": str(Path(data.root).expanduser().absolute())})
    return replace(variant, recipe=variant.recipe.model_copy(update={"data": data}))


def _compare(
    paths: dict[Path, Variant],
    before: int,
    team: Workers,
    splits: tuple[Split, ...],
    records: Records | None,
    report: Callable[[Standing], None] | None,
) -> list[Outcome]:
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
    outcomes: list[Outcome] = []
    elsewhere: dict[Path, float] = {}
    kept = {path for path in paths if RunFolder(path).model_file.is_file()}
    work = {path: functools.partial(_work, variant, path, splits, records) for path, variant in paths.items()}
    pending = {team.submit(work[path]): path for path in paths}
    try:
        while pending or elsewhere:
            for job in team.finished(pending, 0.5) if pending else ():
                path = pending.pop(job)
                try:
                    error = team.result(job)
                except HeldError:
                    elsewhere[path] = time.monotonic()
                    continue
                outcomes.append(Outcome(paths[path], path, error))
                if error is None:
                    (path / "error.txt").unlink(missing_ok=True)
                else:
                    with contextlib.suppress(OSError):
                        write_text(path / "error.txt", error + "\n")
            if report is not None:
                report(_standing(paths, outcomes, before, kept, elsewhere))
            for path, since in list(elsewhere.items()):
                if len(pending) < team.side_by_side and time.monotonic() - since > WAIT:
                    pending[team.submit(work[path])] = path
                    del elsewhere[path]
            if elsewhere and not pending:
                time.sleep(0.5)
    except BaseException:
        team.stop()
        raise
    return outcomes


def run_folders(folder: Path) -> list[RunFolder]:
    """Every run folder at or below `folder`, sorted by path; those of fine-tuned networks belong to their runs.

    Raises:
        ValueError: there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}")
    found = sorted(file.parent for file in folder.rglob("recipe.yaml") if not is_fine_tuned(file.parent))
    if not found:
        raise ValueError(f"{folder} holds no run folder (a folder with recipe.yaml)")
    return [RunFolder(path) for path in found]

"""Train and prune many variants side by side; what is finished is not done again."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import torch

from trimtab.checks import whole
from trimtab.files import alone, write_text
from trimtab.inputs import bad_input
from trimtab.runs.loading import load_data
from trimtab.runs.position import Progress
from trimtab.runs.run_folder import RunFolder
from trimtab.runs.training import train
from trimtab.studies.plan import write_plan
from trimtab.studies.prune_run import Split, prune_run
from trimtab.studies.variants import Variant


@dataclass(frozen=True)
class Outcome:
    """How one run of a study ended: `error` is None when it went well."""

    variant: Variant
    folder: Path
    error: str | None


@dataclass(frozen=True)
class Standing:
    """How far a study is: finished runs, all runs, and the position of those at work."""

    finished: int
    total: int
    active: dict[str, str]


_stop_asked: Event | None = None


def _quiet_worker(threads: int, stop: Event) -> None:
    global _stop_asked
    _stop_asked = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # training installs its own handler; idle workers stay quiet
    torch.set_num_threads(threads)


def _progress_file(folder: Path) -> Path:
    return folder / ".progress"


def _show(file: Path, text: str) -> None:
    with contextlib.suppress(OSError):  # a display is not worth a run
        file.write_text(text)


def _work(variant: Variant, folder: Path, splits: tuple[Split, ...]) -> str | None:
    """Train and prune one variant; returns the error text, if any."""
    if _stop_asked is not None and _stop_asked.is_set():  # the pool hands out one run ahead
        raise KeyboardInterrupt
    shown = _progress_file(folder)
    last = 0.0

    def report(progress: Progress) -> None:
        nonlocal last
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            loss = "" if progress.loss is None else f" loss {progress.loss:.3f}"
            _show(shown, f"{progress.step} {progress.steps} epoch {progress.epoch + 1}/{progress.epochs}{loss}")

    try:
        run = train(variant.recipe, folder, report)
        for split in splits:
            _show(shown, f"1 1 pruning on {split}")
            prune_run(
                run, recipe=variant.recipe, label=variant.label, varied=variant.varied, split=split,
                data=load_data(variant.recipe),
            )  # fmt: skip
    except KeyboardInterrupt:
        raise
    except bad_input(ArithmeticError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return traceback.format_exc()
    finally:
        shown.unlink(missing_ok=True)
    return None


def _standing(paths: dict[Path, Variant], finished: int, total: int) -> Standing:
    active = {}
    for path, variant in paths.items():
        try:
            step, steps, text = _progress_file(path).read_text().split(" ", 2)
            active[f"{variant.label} seed {variant.recipe.seed}"] = f"{int(step) / max(int(steps), 1):.0%} {text}"
        except (OSError, ValueError):
            continue
    return Standing(finished, total, active)


def compare(
    variants: Sequence[Variant],
    folder: Path,
    *,
    jobs: int = 1,
    splits: tuple[Split, ...] = ("test",),
    report: Callable[[Standing], None] | None = None,
) -> list[Outcome]:
    """Train and prune every variant into `folder/runs/LABEL/seedN`, `jobs` at a time.

    Finished runs are kept, interrupted ones go on from their checkpoint. A failing run does not stop the others; its error
    is written to `error.txt` in its folder. The processor's cores are divided among the jobs. Before the first run starts
    `folder/study.json` says which were asked for, so that a report can name those that are missing.

    Args:
        variants: what to run, in this order.
        folder: the study's folder.
        jobs: processes side by side.
        splits: what to measure the pruned networks on.
        report: called about twice a second with the `Standing`.

    Raises:
        ValueError: `jobs` is not positive, or another process is running the study in this folder.
        KeyboardInterrupt: Ctrl-C; every run at work has left a checkpoint.
    """
    whole("jobs", jobs, 1)
    with alone(folder, "running the study in"):
        return _compare(variants, folder, jobs, splits, report)


def _compare(
    variants: Sequence[Variant],
    folder: Path,
    jobs: int,
    splits: tuple[Split, ...],
    report: Callable[[Standing], None] | None,
) -> list[Outcome]:
    paths = {folder / "runs" / variant.folder: variant for variant in variants}
    for path in paths:
        path.mkdir(parents=True, exist_ok=True)
    write_plan(variants, folder)
    outcomes: list[Outcome] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    stop = context.Event()
    with concurrent.futures.ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_quiet_worker, initargs=(max(1, cores // jobs), stop)
    ) as pool:
        pending = {pool.submit(_work, variant, path, splits): path for path, variant in paths.items()}
        try:
            while pending:
                done, _ = concurrent.futures.wait(pending, 0.5, concurrent.futures.FIRST_COMPLETED)
                for future in done:
                    path = pending.pop(future)
                    try:
                        error = future.result()
                    except BrokenProcessPool:
                        error = "a worker process was killed (out of memory?); run the same command again to go on"
                    outcomes.append(Outcome(paths[path], path, error))
                    if error is None:
                        (path / "error.txt").unlink(missing_ok=True)
                    else:
                        with contextlib.suppress(OSError):
                            write_text(path / "error.txt", error + "\n")
                if report is not None:
                    report(_standing(paths, len(outcomes), len(paths)))
        except BaseException:
            # Ctrl-C reaches the workers too (same process group) and they stop between steps; a signal that only the
            # parent got is handed on.
            stop.set()
            workers = list((pool._processes or {}).values())  # noqa: SLF001  (no public way to end a pool's workers at once)
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in workers:
                worker.terminate()
            for worker in workers:
                worker.join()
            raise
    order = list(paths)
    return sorted(outcomes, key=lambda outcome: order.index(outcome.folder))


def run_folders(folder: Path) -> list[RunFolder]:
    """Every run folder at or below `folder`, sorted by path.

    Raises:
        ValueError: there is none.
    """
    if not folder.is_dir():
        raise ValueError(f"no folder at {folder}")
    found = sorted(file.parent for file in folder.rglob("recipe.yaml"))
    if not found:
        raise ValueError(f"{folder} holds no run folder (a folder with recipe.yaml)")
    return [RunFolder(path) for path in found]

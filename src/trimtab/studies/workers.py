"""Who does the runs of a study: processes of this machine, or tasks of a Ray cluster."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Collection
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import version
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from trimtab.checks import one_of, whole
from trimtab.files import HeldError
from trimtab.inputs import CODE_VARIABLE
from trimtab.ray_cluster import join, wanted_address

Launcher = Literal["processes", "ray"]
LAUNCHERS = ("processes", "ray")
RETRIES = 5
"""Machines that may be lost under one run before it counts as failed [ours]."""
Work = Callable[[], str | None]
"""One run: the error text, if any; HeldError where another process is at it. It must pickle."""
Job = Any


class Workers(Protocol):
    """Takes runs and gives back how each ended."""

    side_by_side: int

    def submit(self, work: Work) -> Job: ...  # noqa: D102
    def finished(self, jobs: Collection[Job], seconds: float) -> Collection[Job]:
        """Those that ended, after so many seconds at most."""

    def result(self, job: Job) -> str | None:
        """The error text of one that ended; HeldError where another process is at the run."""

    def close(self) -> None:
        """All is done."""

    def stop(self) -> None:
        """End what is at work between two steps."""


_stop_asked: Event | None = None


def stop_asked() -> bool:
    """Whether this worker was told to begin nothing more."""
    return _stop_asked is not None and _stop_asked.is_set()


def _quiet_worker(threads: int, stop: Event) -> None:
    global _stop_asked
    _stop_asked = stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # training installs its own handler; idle workers stay quiet
    torch.set_num_threads(threads)


def cores() -> int:
    """Of this machine, that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Processes:
    """Processes of this machine.

    Args:
        jobs: side by side.
        threads: of each.
    """

    def __init__(self, jobs: int, threads: int) -> None:
        self.side_by_side = jobs
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._pool = concurrent.futures.ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_quiet_worker, initargs=(threads, self._stop)
        )

    def submit(self, work: Work) -> Job:
        """Queue a run."""
        return self._pool.submit(work)

    def finished(self, jobs: Collection[Job], seconds: float) -> Collection[Job]:
        """Those that ended, after so many seconds at most."""
        return concurrent.futures.wait(jobs, seconds, concurrent.futures.FIRST_COMPLETED).done

    def result(self, job: Job) -> str | None:
        """The error text of one that ended."""
        try:
            error: str | None = job.result()
        except BrokenProcessPool:
            return "a worker process was killed (out of memory?); run the same command again to go on"
        return error

    def close(self) -> None:
        """All is done."""
        self._pool.shutdown()

    def stop(self) -> None:
        """End what is at work between two steps.

        Ctrl-C reaches the workers too (same process group) and they stop between steps; a signal that only the parent got is
        handed on.
        """
        self._stop.set()
        workers = list((self._pool._processes or {}).values())  # noqa: SLF001  (no public way to end a pool's workers at once)
        self._pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.join()


def _on_ray(work: Work, folder: str, wanted: str, threads: int, code: str) -> tuple[bool, str | None]:
    """On the cluster: whether another process is at the run, and the error text."""
    here = socket.gethostname()
    if version("trimtab") != wanted:
        own = version("trimtab")
        return False, f"{here} has trimtab {own}, the study was begun with {wanted}; install that on every machine"
    if not (Path(folder) / "study.json").is_file():
        return False, (
            f"{here} does not see {folder}; a study on several machines needs a folder that all of them share under one path"
        )
    torch.set_num_threads(threads)
    os.environ[CODE_VARIABLE] = code
    try:
        return False, work()
    except HeldError:
        return True, None


class OnRay:
    """Tasks of a Ray cluster. A run whose machine is lost is done again on another, from its checkpoint in the shared folder.

    Args:
        address: as `ray_cluster.wanted_address` gives it.
        jobs: side by side at most; None for as many as the cluster has cores for.
        threads: of each; None for 1.
        folder: of the study, which every machine must see.

    Raises:
        ImportError: Ray is not installed.
        ValueError: nothing answers at the address; said at once.
    """

    def __init__(self, address: str | None, jobs: int | None, threads: int | None, folder: Path) -> None:
        ray, self._begun = join(address)
        self._ray = ray
        each = 1 if threads is None else whole("threads", threads, 1)
        total = int(ray.cluster_resources().get("CPU", 1))
        self.side_by_side = jobs or max(1, total // each)
        settings = {"num_cpus": each, "max_retries": RETRIES, "scheduling_strategy": "SPREAD"}
        self._task = ray.remote(**settings)(_on_ray)
        code = os.environ.get(CODE_VARIABLE, "any")
        self._arguments = (str(folder.resolve()), version("trimtab"), each, code)

    def submit(self, work: Work) -> Job:
        """Queue a run."""
        return self._task.remote(work, *self._arguments)

    def finished(self, jobs: Collection[Job], seconds: float) -> Collection[Job]:
        """Those that ended, after so many seconds at most."""
        done: list[Job] = self._ray.wait(list(jobs), num_returns=1, timeout=seconds)[0]
        return done

    def result(self, job: Job) -> str | None:
        """The error text of one that ended; HeldError where another process is at the run."""
        try:
            held, error = self._ray.get(job)
        except self._ray.exceptions.RayError as lost:
            return (
                f"lost on the cluster {RETRIES + 1} times ({type(lost).__name__}); run the same command again to go on"
            )
        if held:
            raise HeldError("another process is at this run")
        found: str | None = error
        return found

    def close(self) -> None:
        """Leave the cluster, where it was joined here."""
        if self._begun:
            self._ray.shutdown()

    def stop(self) -> None:
        """Leave the cluster, which ends the study's tasks; the last checkpoint of each stays."""
        self.close()


def workers(launcher: str, jobs: int | None, threads: int | None, folder: Path, address: str | None = None) -> Workers:
    """The workers asked for.

    Args:
        launcher: "processes" or "ray".
        jobs: side by side at most; None: 1 process, or as many tasks as the cluster has cores for.
        threads: of each; None: this machine's cores divided among the processes, or 1 on a cluster.
        folder: of the study.
        address: of a Ray cluster.

    Raises:
        ValueError: another launcher, a number below 1, an address without Ray or one that does not answer.
    """
    one_of("launcher", launcher, LAUNCHERS)
    if jobs is not None:
        whole("jobs", jobs, 1)
    address = wanted_address(launcher, address)
    if launcher == "ray":
        return OnRay(address, jobs, threads, folder)
    jobs = jobs or 1
    return Processes(jobs, max(1, cores() // jobs) if threads is None else whole("threads", threads, 1))

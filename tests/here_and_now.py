"""The runs of a study in the test's own process: a worker imports everything anew, and that costs more than a tiny run.

That a study survives its workers, and is stopped with them, is held by `tests/cli/test_workers.py`, which starts real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

import pytest


class HereAndNow(Executor):
    """Does what is submitted at once; an error is raised where the result is asked for, as a pool does it."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def submit(self, call: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(call(*given, **named))
        except Exception as error:
            done.set_exception(error)
        return done


@contextmanager
def in_this_process() -> Iterator[pytest.MonkeyPatch]:
    """Studies start no process for a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("trimtab.studies.workers.concurrent.futures.ProcessPoolExecutor", HereAndNow)
        yield patch

"""Rows of a run on their way from buffers on the device to tables; those bound for a folder outlive the script's end."""

from __future__ import annotations

import atexit
import math
import os
import time
import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

from trimtab.collectives import is_distributed
from trimtab.tables.parts import Parts
from trimtab.tables.recorder import Recorder

if TYPE_CHECKING:
    import pyarrow as pa

GLOBAL = "(global)"
"""Layer name of the row of all tensors together."""
SECONDS = 60.0
"""At the latest after these many seconds rows are written [ours]."""


class Rows(ABC):
    """Tables that are filled together, and what waits in buffers to be appended to them.

    Rows that a folder or a listener is to get are written when the buffers are full, at the first step `seconds` after the
    oldest of them, and when the interpreter ends, be it by an exception. A kill loses what was logged in `seconds` at most.
    It knows nothing of the network: rows that wait keep no weights alive.

    Args:
        folder: run folder, in which each table has one of its own. None keeps the rows in memory.
        names: of these folders, one per table.
        seconds: see above; `math.inf` writes full buffers only.
        overwrite: whether the rows of an earlier run may be replaced.

    Raises:
        ValueError: `seconds` is not above 0; (open) the folder holds rows and `overwrite` is False.
    """

    def __init__(self, folder: Path | str | None, names: Sequence[str], seconds: float, *, overwrite: bool) -> None:
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
            raise ValueError(f"seconds must be above 0 (math.inf: only when the buffer is full), got {seconds!r}")
        self.folder = None if folder is None else Path(folder)
        self.overwrite = overwrite
        self.seconds = float(seconds)
        self.listeners: list[Callable[..., object]] = []
        self._names = names
        self._tables: list[Parts] | None = None
        self._opened = False
        self._writes: bool | None = None
        self._oldest = math.inf
        self._fetched: deque[deque[tuple[Parts, pa.Table]]] = deque()
        self._told: deque[Sequence[pa.Table]] = deque()

    @abstractmethod
    def schemas(self) -> Sequence[pa.Schema]:
        """Of the tables."""

    @property
    @abstractmethod
    def buffers(self) -> Collection[Recorder]:
        """In which rows wait."""

    @abstractmethod
    def collect(self) -> Sequence[pa.Table]:
        """Fetch and forget all that waits, as one table for each of `schemas`; one synchronisation."""

    @property
    def waiting(self) -> bool:
        """Whether a row waits in a buffer."""
        return any(buffer.steps for buffer in self.buffers)

    @property
    def full(self) -> bool:
        """Whether a buffer has no free row."""
        return any(buffer.full for buffer in self.buffers)

    def clear(self) -> None:
        """Forget what waits."""
        for buffer in self.buffers:
            buffer.clear()

    @property
    def parts(self) -> list[Parts]:
        """Where the rows go; made when first needed, since pyarrow is slow to import."""
        if self._tables is None:
            folders = [None if self.folder is None else self.folder / name for name in self._names]
            self._tables = [Parts(schema, folder) for schema, folder in zip(self.schemas(), folders, strict=True)]
        return self._tables

    @property
    def writes(self) -> bool:
        """Whether this process keeps the rows: with a folder only rank 0 does, also when the group is gone at the end."""
        if self._writes is None:
            self._writes = self.folder is None or not is_distributed() or dist.get_rank() == 0
        return self._writes

    def open(self, step: int) -> None:
        """Begin at `step`; later calls do nothing. From step 0 on an earlier run's rows are replaced only when asked for."""
        if self._opened:
            return
        if self.folder is not None and self.writes:
            if step == 0 and not self.overwrite:
                for parts in self.parts:
                    parts.check_empty()
            for parts in self.parts:
                parts.drop_from(step)
            self.parts[0].claim(step)
        self._opened = True

    def committed(self) -> None:
        """A row was put into a buffer: write when it is full or the time has come."""
        now = time.monotonic()
        if self._oldest == math.inf:
            self._oldest = now
        kept = self.writes and (self.folder is not None or bool(self.listeners))
        if kept:
            _unwritten[id(self)] = self
        if self.full or (kept and now - self._oldest >= self.seconds):
            self.flush()

    def flush(self) -> None:
        """Fetch what waits, append it to the tables, hand it to the listeners.

        What could not be written (a full disk) is kept, and written by the next call that can.
        """
        _unwritten.pop(id(self), None)
        self._oldest = math.inf
        if not self.writes:
            self.clear()
        if self.waiting:
            self._fetched.append(deque(zip(self.parts, tables := self.collect(), strict=True)))
            self._told.append(tables)
        if not self._fetched:
            return
        try:
            for parts in self.parts:
                parts.check_untouched()
            while self._fetched:
                self._write_first()
        except OSError:
            _unwritten[id(self)] = self
            raise

    def _write_first(self) -> None:
        """Append the tables that were fetched first, one after the other, and forget each once it is written."""
        left = self._fetched[0]
        while left:
            parts, table = left[0]
            parts.append(table)
            left.popleft()
        self._fetched.popleft()
        tables = self._told.popleft()
        for listener in list(self.listeners):
            listener(*tables)

    def state(self) -> list[Any]:
        """Flushes; each table's rows as bytes, None where they are in a folder."""
        self.flush()
        return [parts.state() for parts in self.parts]

    def restore(self, states: Sequence[Any], step: int) -> None:
        """Go on at `step` from what `state` gave; rows of it and later are removed."""
        _unwritten.pop(id(self), None)
        self.clear()
        self._fetched.clear()
        self._told.clear()
        self._oldest = math.inf
        if self.writes:
            for parts, state in zip(self.parts, states, strict=True):
                parts.restore(state, step)
            self.parts[0].claim(step)
        self._opened = True


_unwritten: dict[int, Rows] = {}
"""Whose rows wait and must not be lost."""


@atexit.register
def _write_what_waits() -> None:
    for rows in list(_unwritten.values()):
        try:
            rows.flush()
        except Exception as error:  # the others shall still be written
            warnings.warn(f"rows for {rows.folder} could not be written at exit: {error}", stacklevel=1)


if hasattr(os, "register_at_fork"):  # a forked child (a DataLoader's worker) leaves its parent's rows alone
    os.register_at_fork(after_in_child=_unwritten.clear)

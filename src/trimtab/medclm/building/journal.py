"""A file of one JSON line per finished item, from which an interrupted build goes on."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from trimtab.files import appending
from trimtab.inputs import lines_of, named


class Journal:
    """Appends one line per item; a line cut off by a kill is dropped at the next opening.

    Args:
        path: the file; made where it is missing.
        every: lines between two flushes. A kill loses at most these, and they are made again.
    """

    def __init__(self, path: Path, every: int = 64) -> None:
        self.path, self._every = path, every
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lines = _mended(path)
        self._handle = path.open("a", encoding="utf-8")

    def add(self, item: str) -> None:
        """Append one item, already JSON text without line breaks.

        Raises:
            OSError: it could not be written (a full disk); names the file.
        """
        with appending(self.path):
            self._handle.write(item + "\n")
            self.lines += 1
            if self.lines % self._every == 0:
                self._handle.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError) if error is not None else appending(self.path):
            try:
                self._handle.flush()
                os.fsync(self._handle.fileno())
            finally:
                self._handle.close()


def journal_items(path: Path) -> Iterator[dict[str, Any]]:
    """The items of a journal, one after the other; a last line without its end is no item.

    Raises:
        ValueError: a whole line is not JSON, which no kill can cause; names file and line.
    """
    for number, line in lines_of(path, whole=True):
        with named(f"{path}: line {number}", "is damaged; remove the folder and build anew"):
            item: dict[str, Any] = json.loads(line)
        yield item


def _mended(path: Path) -> int:
    """Number of whole lines; what follows the last line break is cut off."""
    if not path.is_file():
        return 0
    lines = whole = position = 0
    with path.open("rb+") as handle:
        while block := handle.read(1 << 20):
            found = block.count(b"\n")
            if found:
                lines += found
                whole = position + block.rfind(b"\n") + 1
            position += len(block)
        if whole < position:
            handle.truncate(whole)
    return lines

"""Files as readers need them: strict text, comma-separated values line by line, pictures found by name."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from trimtab.inputs import csv_fields
from trimtab.inputs import utf8 as utf8
from trimtab.medclm.pixels import is_picture
from trimtab.medclm.records import Rejected


def number(text: object) -> float:
    """`text` as a float; NaN where it is none, so that the box check names it."""
    try:
        return float(str(text))
    except ValueError:
        return math.nan


def require_file(path: Path, what: str) -> Path:
    """`path` if it is a file, else a FileNotFoundError that says what was wanted."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; {what} is needed")
    return path


def require_folder(path: Path, what: str) -> Path:
    """`path` if it is a folder, else a NotADirectoryError that says what was wanted."""
    if not path.is_dir():
        raise NotADirectoryError(f"{path} is not a folder; {what} is needed")
    return path


Line = tuple[str, list[str]]


def csv_table(path: Path) -> tuple[list[str], Iterator[Line | Rejected]]:
    """(header, rows) of a file of comma-separated values, one line a row: ("line N", fields), bad lines as Rejected.

    Lines end with a line feed; in a file without any, with a carriage return (old Macintosh).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or its header is not UTF-8.
    """
    require_file(path, "a file of comma-separated values")
    first = next(_raw_lines(path), b"")
    try:
        header = csv_fields(first.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: line 1 is not UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{path}: line 1 is not a header: {error}") from error
    if not any(header):
        raise ValueError(f"{path} is empty; its first line must name the columns")
    return header, _lines(path, len(header))


def _raw_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file with their ends, one at a time."""
    with path.open("rb") as handle:
        first = handle.readline()
        if not first.endswith(b"\n") and b"\r" in first:  # no line feed in the whole file
            yield from first.splitlines(keepends=True)
        elif first:
            yield first
            yield from handle


def _lines(path: Path, fields_wanted: int) -> Iterator[Line | Rejected]:
    for number_of_line, raw in enumerate(_raw_lines(path), start=1):
        if number_of_line == 1:
            continue
        row = f"line {number_of_line}"
        try:
            fields = csv_fields(raw.decode("utf-8"))
        except UnicodeDecodeError:
            yield Rejected(file=path.name, row=row, reason="line is not UTF-8", value=repr(raw[:60]))
            continue
        except ValueError as error:
            reason = f"line is not comma-separated values: {error}"
            yield Rejected(file=path.name, row=row, reason=reason, value=repr(raw[:60]))
            continue
        if not any(fields):
            continue
        if len(fields) != fields_wanted:
            found = f"{len(fields)} fields, {fields_wanted} in the header"
            yield Rejected(file=path.name, row=row, reason="line has another number of fields", value=found)
        else:
            yield row, fields


def csv_rows(path: Path, columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, str]] | Rejected]:
    """("line N", row by column name) of a file of comma-separated values; bad lines as Rejected.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or a column is missing.
    """
    header, lines = csv_table(path)
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{path}: columns {missing} are missing; the header has {header}")
    return (
        line if isinstance(line, Rejected) else (line[0], dict(zip(header, line[1], strict=True))) for line in lines
    )


class PictureIndex:
    """The pictures below a folder, found by path, by file name, or by name without suffix.

    Raises:
        NotADirectoryError: there is no such folder.
    """

    def __init__(self, folder: Path) -> None:
        require_folder(folder, "a folder of images")
        self.files: list[str] = []
        self._by_name: dict[str, list[str]] = {}
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                if is_picture(Path(file)):
                    path = (Path(parent) / file).relative_to(folder)
                    self.files.append(path.as_posix())
                    for name in {path.as_posix(), path.with_suffix("").as_posix(), file, path.stem}:
                        self._by_name.setdefault(name, []).append(path.as_posix())

    def find(self, name: str) -> str | None:
        """Path of the one picture called `name`, relative to the folder; None where there is none or more than one."""
        found = self._by_name.get(name, [])
        return found[0] if len(found) == 1 else None

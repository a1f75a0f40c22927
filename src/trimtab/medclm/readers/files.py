"""Files as readers need them: strict text, comma-separated values line by line, pictures found by name."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

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


def utf8(path: Path) -> str:
    """Text of a file, strictly UTF-8, a byte order mark dropped.

    Raises:
        ValueError: names the file and the line of the first byte that is not UTF-8.
    """
    raw = path.read_bytes()
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}: line {line} is not UTF-8 (byte 0x{raw[error.start]:02x})") from error


Line = tuple[str, list[str]]


def csv_table(path: Path) -> tuple[list[str], Iterator[Line | Rejected]]:
    """(header, rows) of a file of comma-separated values, one line a row: ("line N", fields), bad lines as Rejected.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty or its header is not UTF-8.
    """
    require_file(path, "a file of comma-separated values")
    with path.open("rb") as handle:
        first = handle.readline()
    try:
        header = [field.strip() for field in next(csv.reader([first.decode("utf-8-sig")]), [])]
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: line 1 is not UTF-8") from error
    if not any(header):
        raise ValueError(f"{path} is empty; its first line must name the columns")
    return header, _lines(path, len(header))


def _lines(path: Path, fields_wanted: int) -> Iterator[Line | Rejected]:
    with path.open("rb") as handle:
        handle.readline()
        for number_of_line, raw in enumerate(handle, start=2):
            row = f"line {number_of_line}"
            try:
                fields = [field.strip() for field in next(csv.reader([raw.decode("utf-8")], skipinitialspace=True), [])]
            except UnicodeDecodeError:
                yield Rejected(file=path.name, row=row, reason="line is not UTF-8", value=repr(raw[:60]))
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

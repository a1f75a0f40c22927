"""Files as readers need them: strict text, comma-separated values line by line, pictures found by name."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from trimtab.inputs import csv_fields, shortened
from trimtab.inputs import utf8 as utf8
from trimtab.medclm.pixels import is_picture
from trimtab.medclm.records import Rejected


def number(value: object) -> float:
    """`value` as a float; NaN where it is none, so that the box check names it.

    >>> number("2.5"), number(True), number("1_0"), number([1])
    (2.5, nan, nan, nan)
    """
    kind = type(value)
    if kind is not float and kind is not int and (kind is not str or "_" in str(value) or not str(value).isascii()):
        return math.nan
    try:
        return float(value)  # type: ignore[arg-type]
    except (ValueError, OverflowError):
        return math.nan


def whole(value: object) -> int | None:
    """`value` as a whole number, from text, an int or a float without fraction; None where it is none or above 2^53.

    >>> whole("8"), whole(8.0), whole(8.5), whole("inf"), whole(True)
    (8, 8, None, None, None)
    """
    found = number(value)
    return int(found) if math.isfinite(found) and found == int(found) and abs(found) <= 2**53 else None


def identifier(value: object) -> str | None:
    """An id as text, so that 1, 1.0 and "1" are one id; None where it is none.

    >>> identifier(1), identifier(1.0), identifier(" 1"), identifier(True), identifier([1])
    ('1', '1', '1', None, None)
    """
    kind = type(value)
    if kind is int:
        return str(value)
    if kind is str:
        return str(value).strip() or None
    found = whole(value) if kind is float else None
    return None if found is None else str(found)


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


@dataclass(frozen=True, slots=True)
class Damaged:
    """A line that cannot be used; its fields, as far as they can be told, say which image it may speak of."""

    rejected: Rejected
    fields: tuple[str, ...]


def csv_table(path: Path) -> tuple[list[str], Iterator[Line | Damaged]]:
    """(header, rows) of a file of comma-separated values, one line a row: ("line N", fields), bad lines as Damaged.

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


def _lines(path: Path, fields_wanted: int) -> Iterator[Line | Damaged]:
    for number_of_line, raw in enumerate(_raw_lines(path), start=1):
        if number_of_line == 1:
            continue
        row = f"line {number_of_line}"
        reason, value = "", repr(raw[:60])
        fields: list[str] = []
        try:
            fields = csv_fields(raw.decode("utf-8"))
        except UnicodeDecodeError:
            reason = "line is not UTF-8"
        except ValueError as error:
            reason = f"line is not comma-separated values: {error}"
        if not reason and not any(fields):
            continue
        if not reason and len(fields) != fields_wanted:
            reason, value = "line has another number of fields", f"{len(fields)} fields, {fields_wanted} in the header"
        if reason:
            parts = re.split(r"[,\r\n]", raw.decode("utf-8", errors="replace"))
            names = tuple(name for part in parts if len(part) <= 1000 and (name := part.strip(' \t"')))
            yield Damaged(Rejected(file=path.name, row=row, reason=reason, value=value), names)
        else:
            yield row, fields


def csv_rows(
    path: Path, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, Mapping[str, str]] | Damaged]:
    """("line N", row by column name) of a file of comma-separated values; bad lines as Damaged.

    Columns are known by their names in any case (rad_ID is rad_id). A row holds `columns` and those of `optional` that exist.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, a column is missing, or there are two of one name.
    """
    header, lines = csv_table(path)
    places: dict[str, int] = {}
    for wanted in (*columns, *optional):
        found = [at for at, name in enumerate(header) if name == wanted]
        found = found or [at for at, name in enumerate(header) if name.casefold() == wanted.casefold()]
        if len(found) > 1:
            raise ValueError(
                f"{path}: {len(found)} columns are called {wanted!r}; the header has {shortened(header, 500)}"
            )
        if found:
            places[wanted] = found[0]
    missing = [column for column in columns if column not in places]
    if missing:
        raise ValueError(f"{path}: columns {missing} are missing; the header has {shortened(header, 500)}")
    return (
        line if isinstance(line, Damaged) else (line[0], {name: line[1][at] for name, at in places.items()})
        for line in lines
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
        self._paths = set(self.files)

    def __contains__(self, path: str) -> bool:
        """Whether there is a picture of this very path."""
        return path in self._paths

    def named(self, name: str) -> Sequence[str]:
        """All pictures that `name` may mean, relative to the folder; of an exact path only that."""
        return [name] if name in self._paths else self._by_name.get(name, [])

    def find(self, name: str) -> str | None:
        """Path of the one picture called `name`, relative to the folder; None where there is none or more than one."""
        found = self.named(name)
        return found[0] if len(found) == 1 else None

    def twins(self, file: str) -> Sequence[str]:
        """The pictures whose path without suffix is that of `file`: they would share one file of labels."""
        key = Path(file).with_suffix("").as_posix()
        return [one for one in self._by_name.get(key, []) if Path(one).with_suffix("").as_posix() == key]

"""Reading what others wrote: whatever is wrong with a file or a text is one ValueError that names it.

Parsers fail in many ways, and some of them in ways of no one's documentation. `named` turns all of them into one; the
kinds stand here and nowhere else, and the command line makes one line of each.
"""

from __future__ import annotations

import csv
import json
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MESSAGE_LIMIT = 2000

_OF_PYTHON: tuple[type[Exception], ...] = (
    ValueError, TypeError, OSError, EOFError, RecursionError, MemoryError, SyntaxError,
    csv.Error, struct.error, zlib.error, zipfile.BadZipFile, zipfile.LargeZipFile,
)  # fmt: skip
_OF_OTHERS = (
    ("yaml", "YAMLError"),
    ("PIL.Image", "DecompressionBombError"),
    ("PIL.Image", "DecompressionBombWarning"),
    ("safetensors", "SafetensorError"),
    ("pyarrow", "ArrowException"),
    ("lzma", "LZMAError"),
    ("tokenize", "TokenError"),
    ("xml.parsers.expat", "ExpatError"),
)
_OF_PARSERS: tuple[type[Exception], ...] = (LookupError, AttributeError, ArithmeticError, AssertionError, RuntimeError)

CODE_VARIABLE = "TRIMTAB_MODEL_CODE"
"""Environment variable: which `package.module:function` may run. Unset: all, since who calls from Python is the caller.
"any": all; else names separated by commas, those that the user typed. The command line sets it, also for its workers."""


def bad_input(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """The errors that say "the input is wrong", of Python and of those libraries that are loaded, and `more`."""
    loaded = ((sys.modules.get(module), name) for module, name in _OF_OTHERS)
    return more + _OF_PYTHON + tuple(getattr(module, name) for module, name in loaded if module is not None)


def damage() -> tuple[type[Exception], ...]:
    """`bad_input`, and the slips of parsers over damaged files: KeyError, OverflowError, AttributeError ..."""
    return bad_input() + _OF_PARSERS


def shortened(text: object, limit: int = MESSAGE_LIMIT) -> str:
    """`text` of at most `limit` characters and a note on what was cut.

    Example:
        >>> shortened("x" * 5000, 10)
        'xxxxxxxxxx ... (4,990 more characters)'
    """
    whole = str(text)
    return whole if len(whole) <= limit else f"{whole[:limit]} ... ({len(whole) - limit:,} more characters)"


@contextmanager
def named(where: object, what: str = "is damaged or not of the expected format") -> Iterator[None]:
    """Turn every way in which a file or text can be unreadable into one ValueError that names it.

    A ValueError that names it already passes through.

    Args:
        where: path or description, the first word of the message.
        what: what is said of it before the cause.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: anything of `damage`.

    Example:
        >>> with named("a.json"):
        ...     json.loads("[" * 100_000)
        Traceback (most recent call last):
        ...
        ValueError: a.json is damaged or not of the expected format: it is nested too deeply
    """
    try:
        yield
    except FileNotFoundError as error:
        if error.filename is not None and str(error.filename) != str(where):
            raise  # another file, which it names
        raise FileNotFoundError(f"{where} does not exist") from error
    except damage() as error:
        if isinstance(error, ValueError) and str(where) in str(error):
            raise
        cause = {RecursionError: "it is nested too deeply", MemoryError: "it asks for more memory than there is"}.get(
            type(error), f"missing {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        )
        raise ValueError(f"{where} {what}: {shortened(cause)}") from error


def check_expansion(document: object, limit: int = 100_000) -> None:
    """Refuse a document whose parts stand for each other so often that written out it would be huge, or without end.

    YAML's anchors make 2 kB of text a document of a billion parts; each part is looked at once.

    Raises:
        ValueError: it has more than `limit` parts [ours], or holds itself.

    Example:
        >>> part = ["x"] * 10
        >>> for _ in range(9):
        ...     part = [part] * 10
        >>> check_expansion(part)
        Traceback (most recent call last):
        ...
        ValueError: written out it has more than 100,000 parts
    """
    sizes: dict[int, int | None] = {}

    def size(part: object) -> int:
        if not isinstance(part, dict | list | tuple | set):
            return 1
        if id(part) not in sizes:
            sizes[id(part)] = None
            items = (item for pair in part.items() for item in pair) if isinstance(part, dict) else part
            sizes[id(part)] = 1 + sum(map(size, items))
        found = sizes[id(part)]
        if found is None:
            raise ValueError("it holds itself")
        if found > limit:
            raise ValueError(f"written out it has more than {limit:,} parts")
        return found

    size(document)


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


def parse_json(text: str, where: object) -> Any:
    """The document in `text`; ValueError names `where` it stands."""
    with named(where):
        return json.loads(text)


def read_json(path: Path) -> Any:
    """The document in a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not UTF-8, not JSON, or nested too deeply; names the file.
    """
    with named(path):
        return json.loads(utf8(path))


def read_json_mapping(path: Path) -> dict[str, Any]:
    """As `read_json`, of a file that must hold one mapping."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a mapping, got {type(found).__name__}")
    return found


def lines_of(path: Path, *, whole: bool = False) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not empty, one at a time: memory does not grow with the file.

    Args:
        path: the file, strictly UTF-8; a byte order mark is dropped.
        whole: leave out a last line without its end, which a killed writer leaves.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file and the line that is not UTF-8.
    """
    with named(path):
        handle = path.open("rb")
    with handle:
        for number, raw in enumerate(handle, start=1):
            if whole and not raw.endswith(b"\n"):
                return
            try:
                text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path}: line {number} is not UTF-8 (byte 0x{raw[error.start]:02x})") from error
            if text.strip():
                yield number, text


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The mappings in a file of one JSON document per line; empty lines are left out.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names the file, and the line that is no mapping.
    """
    rows = []
    for number, line in lines_of(path):
        where = f"{path}, line {number}"
        row = parse_json(line, where)
        if not isinstance(row, dict):
            raise ValueError(f"{where} must hold a mapping, got {type(row).__name__}")
        rows.append(row)
    return rows


def csv_fields(line: str) -> list[str]:
    r"""The fields of one line of comma-separated values, without the spaces around them.

    Raises:
        ValueError: a carriage return inside the line, or a field beyond 131,072 characters.

    Example:
        >>> csv_fields('a, "b, c",d\n')
        ['a', 'b, c', 'd']
    """
    try:
        return [field.strip() for field in next(csv.reader([line], skipinitialspace=True), [])]
    except csv.Error as error:
        inside = "\r" in line.rstrip("\r\n")
        raise ValueError("it holds a carriage return" if inside else str(error)) from error

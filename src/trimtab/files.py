"""Files that are either wholly there or not there: written to a temporary name, flushed, then renamed."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


def replace_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk, rename it to `path`.

    On any error (a full disk, Ctrl-C) the temporary file is removed and an earlier `path` stays as it was. Who may read the
    file follows from the umask, as for any new file.

    Raises:
        OSError: the file could not be written; the message names `path`. Any other error of `write` passes through with
            a note that names it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise OSError(error.errno, f"could not write {path}: {error.strerror or error}") from error
    try:
        write(temporary)
        with temporary.open("rb+") as handle:
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise OSError(errno_of(error), f"could not write {path}: {error.strerror or error}") from error
        error.add_note(f"while writing {path}")
        raise


def check_free(folder: Path) -> None:
    """Refuse a place for a new folder that is taken.

    Raises:
        ValueError: there is a file, or a folder that is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; choose another folder")


@contextmanager
def folder_atomically(folder: Path) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end; on any error it is removed and `folder` is as it was.

    Raises:
        ValueError: `folder` is taken already.
        OSError: it could not be made.
    """
    check_free(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.part"
        temporary.mkdir()
    except OSError as error:
        raise OSError(error.errno, f"could not write {folder}: {error.strerror or error}") from error
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        check_free(folder)
        if folder.exists():
            folder.rmdir()
        temporary.rename(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(errno_of(error), f"could not write {folder}: {error.strerror or error}") from error
        raise


@contextmanager
def appending(path: Path) -> Iterator[None]:
    """Inside, an OSError of a write into `path`, which is open, is one that names it.

    Raises:
        OSError: as it was, with its number, and `path` in its message.
    """
    try:
        yield
    except OSError as error:
        raise OSError(errno_of(error), f"could not write {path}: {error.strerror or error}") from error


def errno_of(error: BaseException) -> int | None:
    """The system's number of an error, also where a library wrapped it and kept it in the text alone.

    Example:
        >>> errno_of(RuntimeError("I/O error: No space left on device (os error 28)"))
        28
    """
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    found = re.search(r"\((?:os error|errno) (\d+)\)|\[Errno (\d+)\]", str(error), re.IGNORECASE)
    return int(found.group(1) or found.group(2)) if found else None


class HeldError(ValueError):
    """Another process is at work in a folder."""


@contextmanager
def alone(folder: Path, doing: str) -> Iterator[None]:
    """Keep other processes out of `folder`; the system frees the lock of a killed process.

    Args:
        folder: made where it is missing; the lock is its file `.lock`.
        doing: what the message says the other process does, such as "training into".

    Raises:
        HeldError: another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise HeldError(f"another process is {doing} {folder}; wait for it, or choose another folder") from None
    try:
        yield
    finally:
        lock.release()


def write_lines(path: Path, lines: Iterable[str]) -> None:
    """`replace_atomically` with one line after the other; memory does not grow with them."""

    def write(temporary: Path) -> None:
        with temporary.open("w", encoding="utf-8") as handle:
            handle.writelines(f"{line}\n" for line in lines)

    replace_atomically(path, write)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, atomically."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    replace_atomically(path, write)

"""What leaves the machine: one `results.json`, and one archive per part, each below 16 MiB."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from part import ROWS

MOST = 15 * 2**20
"""Bytes of an archive before compression, below the limit of 16 MiB."""
LEFT_BEHIND = {".safetensors", ".pt", ".npz", ".pyc", ".whl"}
"""Weights and data: large, and made again by the same command."""


def write_json(path: Path, content: Any) -> None:
    """Write atomically: a reader finds the earlier or the later content, never a part of one."""
    scratch = path.with_name(f".{path.name}.writing")
    with scratch.open("w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """The rows that a part has written so far; a last line cut short by a kill is left out."""
    file = folder / ROWS
    if not file.is_file():
        return []
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def _smallest_first(folder: Path) -> Iterator[tuple[Path, int]]:
    files = [file for file in folder.rglob("*") if file.is_file() and not file.is_symlink()]
    sizes = {file: file.stat().st_size for file in files if file.suffix not in LEFT_BEHIND}
    yield from sorted(sizes.items(), key=lambda item: (item[1], str(item[0])))


def pack(folder: Path, archive: Path, most: int = MOST) -> list[str]:
    """Pack a part's folder into `archive` (.tar.gz), smallest files first, no more than `most` bytes; what stayed behind."""
    scratch = archive.with_name(f".{archive.name}.writing")
    held, behind = 0, []
    with tarfile.open(scratch, "w:gz", compresslevel=6) as packed:
        for file, size in _smallest_first(folder):
            name = str(file.relative_to(folder.parent))
            if held + size + 1024 > most:
                behind.append(name)
                continue
            try:
                packed.add(file, name, recursive=False)
            except OSError:  # gone or still growing: the next packing has it
                continue
            held += size + 1024
    scratch.replace(archive)
    return behind

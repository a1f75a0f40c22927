"""The folder of a built data set: which files it holds, its manifest, reading it back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from trimtab.files import write_text
from trimtab.inputs import lines_of, named, read_json_mapping, shortened, utf8
from trimtab.medclm.records import ImageRecord, Rejected, Row, inside

FORMAT = 1


class ListedFile(BaseModel):
    """Size in bytes and SHA-256 of a file of the data set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """`manifest.json`.

    Attributes:
        format: version of the layout.
        trimtab: version that wrote it.
        state: "building" until all files are there, then "complete"; "failed" where an error ended the build.
        options: what was asked for; a build goes on only with the same.
        inputs: fingerprints of the sources; a build goes on only while they are the same.
        counts: images, lesions, rows, rejected.
        files: path -> size and hash, of all files but the images and organ masks.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    trimtab: str
    state: str = "building"
    options: dict[str, Any]
    inputs: dict[str, str]
    counts: dict[str, int] = {}
    files: dict[str, ListedFile] = {}


class DataSetFolder:
    """A folder that `build` wrote.

    Raises:
        NotADirectoryError, FileNotFoundError, ValueError: it holds no finished data set (see `finished`).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest_file = path / "manifest.json"
        self.records_file = path / "records.jsonl"
        self.rows_file = path / "rows.jsonl"
        self.rejected_file = path / "rejected.jsonl"
        self.statistics_file = path / "statistics.json"
        self.card_file = path / "README.md"
        self.images = path / "images"
        self.organs = path / "organs"
        self.data = path / "data"
        self.work = path / "work"

    def manifest(self) -> Manifest | None:
        """The manifest, or None where the folder has none.

        Raises:
            ValueError: it is damaged or of another format.
        """
        if not self.manifest_file.is_file():
            return None
        with named(self.manifest_file, f"is not a manifest of format {FORMAT}"):
            return Manifest.model_validate_json(utf8(self.manifest_file))

    def write_manifest(self, manifest: Manifest) -> None:
        """Replace the manifest."""
        write_text(self.manifest_file, manifest.model_dump_json(indent=1) + "\n")

    def clear(self) -> None:
        """Remove what a build wrote."""
        for folder in (self.work, self.images, self.organs, self.data):
            shutil.rmtree(folder, ignore_errors=True)
        files = (self.records_file, self.rows_file, self.rejected_file, self.statistics_file, self.card_file)
        for file in (*files, self.manifest_file):
            file.unlink(missing_ok=True)

    def finished(self) -> Manifest:
        """The manifest of a finished data set.

        Raises:
            NotADirectoryError, FileNotFoundError: there is no such folder or no manifest.
            ValueError: the build did not finish.
        """
        if not self.path.is_dir():
            raise NotADirectoryError(
                f"{self.path} is not a folder; a folder that `trimtab medclm build` wrote is needed"
            )
        manifest = self.manifest()
        if manifest is None:
            raise FileNotFoundError(f"{self.path} has no manifest.json; `trimtab medclm build` writes one")
        if manifest.state != "complete":
            raise ValueError(
                f"{self.path}: the build did not finish (its {self.manifest_file.name} says "
                f"{shortened(manifest.state, 40)!r}); give the same build command again to go on"
            )
        return manifest

    def rows(self) -> Iterator[tuple[Row, str]]:
        """(row, path of its image relative to the folder), in order; memory does not grow.

        Raises:
            ValueError: a line is not a row; names file and line.
        """
        for number, line in lines_of(self.rows_file):
            with named(f"{self.rows_file}: line {number}", "is not a row"):
                data = json.loads(line)
                image = inside(data.pop("image"))
                row = Row.model_validate(data)
            yield row, image

    def records(self) -> Iterator[ImageRecord]:
        """The records of the images, in order.

        Raises:
            ValueError: a line is not a record; names file and line.
        """
        for number, line in lines_of(self.records_file):
            with named(f"{self.records_file}: line {number}", "is not a record"):
                record = ImageRecord.model_validate_json(line)
            yield record

    def rejected(self) -> Iterator[Rejected]:
        """Rows of the sources and finished rows that were not taken; ValueError as `rows`."""
        for number, line in lines_of(self.rejected_file):
            with named(f"{self.rejected_file}: line {number}", "is not a rejected row"):
                found = Rejected.model_validate_json(line)
            yield found

    def statistics(self) -> dict[str, Any]:
        """`statistics.json`; ValueError where it is damaged."""
        return read_json_mapping(self.statistics_file)


def listed_file(path: Path) -> ListedFile:
    """Size and hash of a file, read in pieces."""
    with path.open("rb") as handle:
        return ListedFile(bytes=path.stat().st_size, sha256=hashlib.file_digest(handle, "sha256").hexdigest())


def fingerprint(path: Path) -> str:
    """Of a file the SHA-256 of its bytes; of a folder that of the names, sizes and times of all files in it.

    Raises:
        FileNotFoundError: there is nothing there.
    """
    if path.is_file():
        return listed_file(path).sha256
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist")
    digest = hashlib.sha256()
    for folder, folders, files in os.walk(path):
        folders.sort()
        for name in sorted(files):
            status = (Path(folder) / name).stat()
            digest.update(f"{os.path.relpath(folder, path)}/{name} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()

"""`check`: whether a built data set is what its manifest says and whether its rows hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from trimtab.medclm.building.exports import rows_with_records
from trimtab.medclm.building.folder import DataSetFolder, listed_file
from trimtab.medclm.building.identity import content_of
from trimtab.medclm.organs.rle import read_organs
from trimtab.medclm.organs.source import OrganError
from trimtab.medclm.pixels import PictureError, picture_size, read_picture
from trimtab.medclm.quality import QualityControl
from trimtab.medclm.records import ImageRecord, Rejected

MOST_SHOWN = 1000
"""Faults kept with their place; all are counted."""


@dataclass
class CheckReport:
    """What was checked and what was found."""

    images: int = 0
    rows: int = 0
    faults: list[Rejected] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, fault: Rejected) -> None:
        """Count a fault."""
        self.reasons[fault.reason] += 1
        if len(self.faults) < MOST_SHOWN:
            self.faults.append(fault)


def check(
    folder: DataSetFolder, *, decode: bool = False, progress: Callable[[str, int], None] | None = None
) -> CheckReport:
    """Check manifest and hashes, images and masks, splits, every row against its record, and the Parquet files.

    Args:
        folder: a finished data set.
        decode: decode every image, not only its header, and look for pictures that are there twice.
        progress: called with the step and the number done.

    Raises:
        NotADirectoryError, FileNotFoundError, ValueError: there is no finished data set.
    """
    manifest = folder.finished()
    report = CheckReport()
    for name, listed in manifest.files.items():
        path = folder.path / name
        if not path.is_file():
            report.add(Rejected(file=name, row="", reason="file of the manifest is missing"))
        elif listed_file(path) != listed:
            report.add(Rejected(file=name, row="", reason="file differs from its hash in the manifest"))
    try:
        _records(folder, decode=decode, report=report, progress=progress)
        _rows(folder, report, progress)
    except (ValueError, OSError) as error:
        report.add(Rejected(file=folder.path.name, row="", reason="file cannot be read", value=str(error)))
    for what, found in (("images", report.images), ("rows", report.rows)):
        if manifest.counts.get(what) != found:
            value = f"{found}, manifest {manifest.counts.get(what)}"
            report.add(
                Rejected(
                    file="manifest.json", row="", reason=f"number of {what} differs from the manifest", value=value
                )
            )
    for fault in _parquet(folder, report.rows):
        report.add(fault)
    return report


def _records(
    folder: DataSetFolder, *, decode: bool, report: CheckReport, progress: Callable[[str, int], None] | None
) -> None:
    split_of: dict[tuple[str, str], str] = {}
    contents: dict[str, str] = {}
    by_patient = (folder.manifest() or folder.finished()).options.get("split") == "patient"
    for record in folder.records():
        report.images += 1
        if progress is not None:
            progress("images", report.images)
        earlier = split_of.setdefault((record.source, record.patient), record.split)
        if by_patient and earlier != record.split:
            value = f"{record.patient} in {earlier} and {record.split}"
            report.add(
                Rejected(file="records.jsonl", row=record.image_id, reason="patient is in two splits", value=value)
            )
        for fault in (*_image(folder, record, decode=decode, contents=contents), *_masks(folder, record)):
            report.add(fault)


def _image(folder: DataSetFolder, record: ImageRecord, *, decode: bool, contents: dict[str, str]) -> Iterator[Rejected]:
    path = folder.images / record.file
    name = f"images/{record.file}"
    try:
        size = picture_size(path)
        if decode:
            pixels = read_picture(path)
            size = (pixels.shape[1], pixels.shape[0])
            content = content_of(pixels)
            if content and contents.setdefault(content, record.image_id) != record.image_id:
                value = f"{record.image_id} and {contents[content]}"
                yield Rejected(file=name, row="", reason="picture is in the set twice", value=value)
    except FileNotFoundError:
        yield Rejected(file=name, row="", reason="image is missing")
    except PictureError as error:
        yield Rejected(file=name, row="", reason="image is unreadable", value=str(error))
    else:
        if size != (record.width, record.height):
            value = f"{size[0]} x {size[1]}, record {record.width} x {record.height}"
            yield Rejected(file=name, row="", reason="image has another size than its record", value=value)


def _masks(folder: DataSetFolder, record: ImageRecord) -> Iterator[Rejected]:
    if record.organ_file is None:
        return
    try:
        masks = read_organs(folder.organs / record.organ_file)
    except OrganError as error:
        yield error.rejected
        return
    if any(mask.shape != (record.height, record.width) for mask in masks.values()):
        yield Rejected(file=f"organs/{record.organ_file}", row="", reason="mask has another size than its image")


def _rows(folder: DataSetFolder, report: CheckReport, progress: Callable[[str, int], None] | None) -> None:
    quality = QualityControl()
    image, seen = "", set[str]()
    for row, path, record in rows_with_records(folder):
        report.rows += 1
        if progress is not None:
            progress("rows", report.rows)
        if row.image_id != image:
            image, seen = row.image_id, set()
        if row.row_id in seen:
            report.add(Rejected(file="rows.jsonl", row=row.row_id, reason="row id occurs twice"))
        seen.add(row.row_id)
        if path != f"images/{record.file}":
            report.add(Rejected(file="rows.jsonl", row=row.row_id, reason="row names another image file", value=path))
        for fault in quality.faults(row, record):
            report.add(fault)


def _parquet(folder: DataSetFolder, rows: int) -> Iterator[Rejected]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = 0
    for path in sorted(folder.data.glob("*.parquet")):
        try:
            found += pq.read_metadata(path).num_rows
        except (pa.ArrowInvalid, OSError) as error:
            yield Rejected(file=f"data/{path.name}", row="", reason="Parquet file is unreadable", value=str(error))
    if found != rows:
        yield Rejected(
            file="data", row="", reason="number of rows in Parquet differs", value=f"{found}, rows.jsonl {rows}"
        )

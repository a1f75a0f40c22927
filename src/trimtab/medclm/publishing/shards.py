"""A set as webdataset shards: tar files of pictures, each with the JSON of its rows beside it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from trimtab.files import replace_atomically
from trimtab.medclm.building.exports import SPLITS, rows_with_records
from trimtab.medclm.building.folder import DataSetFolder

Sample = list[tuple[str, bytes]]
"""(name, content) of its members."""


def write_shards(folder: DataSetFolder, out: Path, name: str, most: int = 1000) -> dict[str, list[Path]]:
    """`NAME-SPLIT-000000.tar` and so on; returns split -> shards.

    A sample is a picture: KEY.png (or what kind it is) and KEY.json with image_id, width, height, patient, split and `rows`,
    the rows about it as in rows.jsonl. The same set gives the same bytes: members bear no time and no owner.

    Args:
        folder: a finished set.
        out: folder of the shards.
        name: first part of their names.
        most: pictures in a shard.

    Raises:
        ValueError: `most` is below 1, or the set is not finished.
    """
    if most < 1:
        raise ValueError(f"pictures in a shard must be 1 or more, got {most}")
    folder.finished()
    written: dict[str, list[Path]] = {}
    for split in SPLITS:
        samples = _samples(folder, split)
        sample = next(samples, None)
        while sample is not None:
            path = out / f"{name}-{split}-{len(written.get(split, ())):06d}.tar"
            sample = _shard(path, sample, samples, most)
            written.setdefault(split, []).append(path)
    return written


def _shard(path: Path, first: Sample, samples: Iterator[Sample], most: int) -> Sample | None:
    """Write one shard; returns the sample that comes after it."""
    following: Sample | None = first

    def write(temporary: Path) -> None:
        nonlocal following
        with tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as shard:
            for _ in range(most):
                if following is None:
                    return
                for member, content in following:
                    info = tarfile.TarInfo(member)
                    info.size, info.mtime, info.mode = len(content), 0, 0o644
                    shard.addfile(info, io.BytesIO(content))
                following = next(samples, None)

    replace_atomically(path, write)
    return following


def _samples(folder: DataSetFolder, split: str) -> Iterator[Sample]:
    number = 0
    for _, group in groupby(rows_with_records(folder), key=lambda one: one[0].image_id):
        found = list(group)
        _, image, record = found[0]
        if record.split != split:
            continue
        about: dict[str, Any] = {
            key: getattr(record, key) for key in ("image_id", "width", "height", "patient", "split", "modality")
        }
        about["file"] = image
        about["rows"] = [row.model_dump(mode="json") for row, _, _ in found]
        key = f"{number:09d}"
        kind = PurePosixPath(image).suffix.lower()
        yield [
            (f"{key}{kind}", (folder.path / image).read_bytes()),
            (f"{key}.json", json.dumps(about, ensure_ascii=False).encode()),
        ]
        number += 1

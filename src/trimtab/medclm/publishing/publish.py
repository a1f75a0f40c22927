"""`publish`: a finished set as a folder that others load: card, Croissant, Parquet or shards, or annotations alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from trimtab.files import replace_atomically, write_text
from trimtab.medclm.building.card import card
from trimtab.medclm.building.exports import SPLITS
from trimtab.medclm.building.folder import DataSetFolder, Manifest, listed_file
from trimtab.medclm.building.parquet import write_splits
from trimtab.medclm.publishing.about import About
from trimtab.medclm.publishing.annotations import PICTURES, STATE, write_pictures
from trimtab.medclm.publishing.croissant import croissant
from trimtab.medclm.publishing.shards import write_shards

SIZES = (
    (1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"),
)  # fmt: skip


def size_category(rows: int) -> str:
    """The Hub's word for a number of rows.

    >>> size_category(12), size_category(1000), size_category(10**9)
    ('n<1K', '1K<n<10K', 'n>10M')
    """
    return next((word for limit, word in SIZES if rows < limit), "n>10M")


def publish(
    folder: DataSetFolder,
    out: Path,
    about: About,
    *,
    published: str,
    version: str = "1.0.0",
    shards: int = 0,
    annotations_only: bool = False,
) -> dict[str, Any]:
    """Write what is published into `out`; the set itself is not changed.

    Always: README.md (the card, with licence, `pretty_name`, `size_categories`), croissant.json, statistics.json, and
    data/SPLIT.parquet, which `datasets.load_dataset(OUT)` opens. With `shards`, the same as webdataset tars in shards/. Without
    pictures (`annotations_only`) the Parquet files hold paths only, and beside them lie rows, records, organ masks, the
    manifest and pictures.jsonl, from which `rejoin` makes the set again.

    Args:
        folder: a finished set.
        out: folder; new or empty.
        about: name, licence and the like.
        published: date, as 2026-01-31.
        version: of the set.
        shards: pictures in a webdataset shard; 0 writes none.
        annotations_only: leave the pictures out.

    Returns:
        What was written: `rows`, `splits`, `files` (path -> bytes), `shards`.

    Raises:
        ValueError: the set is not finished, `out` is not empty, or shards are asked for without pictures.
    """
    manifest = folder.finished()
    if annotations_only and shards:
        raise ValueError("shards hold the pictures; leave out either shards or annotations_only")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty; name another --out")
    out.mkdir(parents=True, exist_ok=True)
    splits = _data(folder, manifest, out, pictures=not annotations_only)
    statistics = folder.statistics()
    shutil.copyfile(folder.statistics_file, out / "statistics.json")
    write_text(
        out / "README.md", card(statistics, manifest, splits, *_words(about, statistics["rows"], annotations_only))
    )
    data = {f"data/{split}.parquet": listed_file(out / "data" / f"{split}.parquet") for split in splits}
    metadata = croissant(about, data, splits, version, published, pictures=not annotations_only)
    write_text(out / "croissant.json", json.dumps(metadata, indent=1, ensure_ascii=False) + "\n")
    tars = write_shards(folder, out / "shards", about.name, shards) if shards else {}
    if annotations_only:
        _annotations(folder, manifest, out, [f"data/{split}.parquet" for split in splits])
    files = {path.relative_to(out).as_posix(): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()}
    return {
        "rows": statistics["rows"],
        "splits": splits,
        "files": files,
        "shards": {split: [path.name for path in paths] for split, paths in tars.items()},
    }


def _data(folder: DataSetFolder, manifest: Manifest, out: Path, *, pictures: bool) -> list[str]:
    """data/SPLIT.parquet, as the set has it if it holds (or lacks) the pictures already."""
    if manifest.options.get("embed", True) is pictures:
        (out / "data").mkdir()
        for path in sorted(folder.data.glob("*.parquet")):
            replace_atomically(out / "data" / path.name, partial(shutil.copyfile, path))
    else:
        write_splits(folder.rows(), folder.path, embed=pictures, data=out / "data")
    return [split for split in SPLITS if (out / "data" / f"{split}.parquet").is_file()]


def _words(about: About, rows: int, annotations_only: bool) -> tuple[Sequence[str], str, str]:  # noqa: FBT001
    """(header, title, sentence on the licence) of the card."""
    header = [
        f"license: {about.licence}",
        f"pretty_name: {json.dumps(about.shown_name, ensure_ascii=False)}",
        f"size_categories:\n  - {size_category(rows)}",
        "tags:\n  - medical\n  - grounding\n  - bounding-boxes",
    ]
    if about.licence == "other":
        header.insert(1, f"license_name: other\nlicense_link: {json.dumps(about.licence_link)}")
    linked = f"[{about.licence}]({about.licence_url})"
    terms = [f"Licence: {about.licence if about.licence_url == about.licence else linked}."]
    if annotations_only:
        terms.append(
            f"This release holds no pictures: `{PICTURES}` has the SHA-256 of each. `trimtab medclm rejoin THIS --images DIR "
            "--out SET` puts them together with your own copies."
        )
    for word, said in (("Source", about.description), ("Home page", about.url), ("Cite", about.citation)):
        if said:
            terms.append(f"{word}: {said}")
    if about.creators:
        terms.append(f"Made by {', '.join(about.creators)}.")
    return header, about.shown_name, "\n* ".join(terms)


def _annotations(folder: DataSetFolder, manifest: Manifest, out: Path, data: Sequence[str]) -> None:
    number = write_pictures(folder, out)
    release = DataSetFolder(out)
    for name in ("records_file", "rows_file", "rejected_file"):
        replace_atomically(getattr(release, name), partial(shutil.copyfile, getattr(folder, name)))
    for record in folder.records():
        if record.organ_file is not None:
            target = release.organs / record.organ_file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder.organs / record.organ_file, target)
    names = [
        release.records_file.name,
        release.rows_file.name,
        release.rejected_file.name,
        PICTURES,
        "statistics.json",
        *data,
    ]
    listed = {name: listed_file(out / name) for name in names}
    counts = {**manifest.counts, "pictures": number}
    release.write_manifest(manifest.model_copy(update={"state": STATE, "files": listed, "counts": counts}))

"""A set without its pictures: hashes stand for them, and who has the pictures puts the two together again."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError

from trimtab.files import alone, write_lines, write_text
from trimtab.inputs import lines_of, named, utf8
from trimtab.medclm.building.folder import DataSetFolder, listed_file
from trimtab.medclm.building.identity import content_of
from trimtab.medclm.building.parquet import write_splits
from trimtab.medclm.pixels import PictureError, is_picture, read_picture
from trimtab.medclm.records import inside

PICTURES = "pictures.jsonl"
STATE = "annotations"
"""State of the manifest of a release without pictures."""
_LOSSLESS = (".png", ".bmp")


class Picture(BaseModel):
    """A picture that a release lacks.

    Attributes:
        file: where it belongs, relative to the folder of pictures.
        bytes, sha256: of the file.
        pixels: hash of what it shows (`building.identity.content_of`), the same in every lossless kind of file; "" of an even
            picture.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    bytes: int
    sha256: str
    pixels: str = ""


def write_pictures(folder: DataSetFolder, out: Path) -> int:
    """`pictures.jsonl`: what stands for each picture of the set; returns their number."""
    names: list[str] = []

    def lines() -> Iterator[str]:
        for record in folder.records():
            path = folder.images / record.file
            listed = listed_file(path)
            pixels = content_of(read_picture(path))
            names.append(record.file)
            yield Picture(file=record.file, bytes=listed.bytes, sha256=listed.sha256, pixels=pixels).model_dump_json()

    write_lines(out / PICTURES, lines())
    return len(names)


def read_pictures(release: Path) -> list[Picture]:
    """The lines of `pictures.jsonl`.

    Raises:
        FileNotFoundError: there is none: no release of annotations.
        ValueError: a line is damaged, names a file outside its folder, or one that came before.
    """
    file = release / PICTURES
    if not file.is_file():
        raise FileNotFoundError(
            f"{release} has no {PICTURES}: no release of annotations, as publish --annotations-only writes"
        )
    found: dict[str, Picture] = {}
    for number, line in lines_of(file):
        with named(f"{file}: line {number}", "is not a picture"):
            try:
                one = Picture.model_validate_json(line)
            except ValidationError as error:
                raise ValueError(str(error.errors()[0]["msg"])) from error
            if inside(one.file) != one.file or one.file in found:
                raise ValueError(f"file {one.file!r} is not a plain path, or comes twice")
        found[one.file] = one
    return list(found.values())


def rejoin(
    release: Path,
    pictures: Path,
    out: Path,
    *,
    leave_out: bool = False,
    progress: Callable[[str, int], None] | None = None,
) -> DataSetFolder:
    """A whole set from a release of annotations and a folder that holds the pictures under any names.

    A local file is the picture if its SHA-256 is the same. Else one whose pixels are the same is taken, written as the kind of
    file that the set names, where that is lossless (PNG, BMP). The result passes `trimtab medclm check`.

    Args:
        release: folder that `publish --annotations-only` wrote.
        pictures: folder of the pictures, searched with all its folders.
        out: folder of the set; new or empty.
        leave_out: leave out images whose picture is not there, with their rows; else this is an error.
        progress: called with (step, number done).

    Raises:
        FileNotFoundError, NotADirectoryError: no release, or no folder of pictures.
        ValueError: pictures are missing (their number and the first are named), `out` is not empty, the release is damaged.
    """
    wanted = read_pictures(release)
    source = DataSetFolder(release)
    manifest = source.manifest()
    if manifest is None or manifest.state != STATE:
        raise ValueError(f"{release}: its manifest does not say that it is a release of annotations (state {STATE!r})")
    for name, listed in manifest.files.items():
        if not (release / name).is_file() or listed_file(release / name) != listed:
            raise ValueError(
                f"{release}: {name} is missing or differs from its hash in the manifest; get the release again"
            )
    if not pictures.is_dir():
        raise NotADirectoryError(f"{pictures} is not a folder; it must hold the pictures")
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty; name another --out")
    found = _found(wanted, pictures, progress)
    missing = [one for one in wanted if one.file not in found]
    if missing and (not leave_out or not found):
        first = missing[0]
        raise ValueError(
            f"{len(missing):,} of {len(wanted):,} pictures are not in {pictures}; first: {first.file} (SHA-256 {first.sha256}, "
            f"{first.bytes:,} bytes)" + ("" if leave_out else "; --leave-out goes on without them")
        )
    folder = DataSetFolder(out)
    with alone(out, "rejoining into"):
        for one in wanted:
            if one.file in found:
                _put(found[one.file], folder.images / one.file, one)
        kept = _copied(source, folder, set(found))
        shutil.copyfile(source.statistics_file, folder.statistics_file)
        note = (
            f"\n\nRejoined without {len(missing):,} of {len(wanted):,} pictures; the counts above are of all.\n"
            if missing
            else ""
        )
        write_text(folder.card_file, utf8(source.card_file) + note)
        shards = write_splits(folder.rows(), out, embed=True)
        files = [folder.records_file, folder.rows_file, folder.rejected_file, folder.statistics_file, folder.card_file]
        listed_now = {path.relative_to(out).as_posix(): listed_file(path) for path in [*files, *shards.values()]}
        folder.write_manifest(
            manifest.model_copy(
                update={"state": "complete", "files": listed_now, "counts": {**manifest.counts, **kept}}
            )
        )
    return folder


def _found(wanted: list[Picture], pictures: Path, progress: Callable[[str, int], None] | None) -> dict[str, Path]:
    """File of the set -> local file; by bytes first, by pixels for what is left."""
    sizes = {one.bytes for one in wanted}
    by_hash = {one.sha256: one.file for one in wanted}
    found: dict[str, Path] = {}
    local = sorted(path for path in _files(pictures) if is_picture(path))
    rest = []
    for number, path in enumerate(local, start=1):
        digest = _sha256(path) if path.stat().st_size in sizes else ""
        if digest in by_hash:
            found.setdefault(by_hash[digest], path)
        else:
            rest.append(path)
        if progress is not None:
            progress("hashes", number)
    missing = {one.pixels: one.file for one in wanted if one.file not in found and one.pixels}
    for number, path in enumerate(rest, start=1):
        if not missing:
            break
        try:
            pixels = content_of(read_picture(path))
        except (PictureError, OSError):
            continue
        if pixels in missing and PurePosixPath(missing[pixels]).suffix.lower() in _LOSSLESS:
            found[missing.pop(pixels)] = path
        if progress is not None:
            progress("pixels", number)
    return found


def _files(folder: Path) -> Iterator[Path]:
    for root, _, names in os.walk(folder):
        yield from (Path(root) / name for name in names)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _put(source: Path, target: Path, picture: Picture) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.stat().st_size == picture.bytes and _sha256(source) == picture.sha256:
        shutil.copyfile(source, target)
    else:
        Image.fromarray(read_picture(source)).save(target)


def _copied(source: DataSetFolder, folder: DataSetFolder, kept: set[str]) -> dict[str, int]:
    """Records, rows, rejected rows and organ masks of the pictures kept; counts of images, lesions, rows."""
    images: set[str] = set()
    counts = {"images": 0, "lesions": 0, "rows": 0}

    def records() -> Iterator[str]:
        for record in source.records():
            if record.file in kept:
                images.add(record.image_id)
                counts["images"] += 1
                counts["lesions"] += len(record.lesions)
                if record.organ_file is not None:
                    target = folder.organs / record.organ_file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(source.organs / record.organ_file, target)
                yield record.model_dump_json()

    def rows() -> Iterator[str]:
        for _, line in lines_of(source.rows_file):
            if json.loads(line)["image_id"] in images:
                counts["rows"] += 1
                yield line.rstrip("\n")

    write_lines(folder.records_file, records())
    write_lines(folder.rows_file, rows())
    shutil.copyfile(source.rejected_file, folder.rejected_file)
    return counts

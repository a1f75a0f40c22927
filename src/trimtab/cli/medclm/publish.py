"""`trimtab medclm publish`, `push` and `rejoin`: a set made ready for others, sent, and put together with pictures again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.cli.progress import counting_progress
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.publishing import About, release_in
from trimtab.medclm.publishing import publish as publish_set
from trimtab.medclm.publishing import push as push_release
from trimtab.medclm.publishing import rejoin as rejoin_set
from trimtab.medclm.publishing.push import on_hub


@dataclass(frozen=True)
class PublishArguments:
    """Writes a set as others load it: card with licence, Croissant metadata, Parquet that datasets.load_dataset opens,
    webdataset shards; or annotations alone, with hashes for the pictures.

    Examples:
        trimtab medclm publish SET --out DIR --name chest-boxes --licence cc-by-4.0
        trimtab medclm publish SET --out DIR --name N --licence mit --shards 1000
        trimtab medclm publish SET --out DIR --name N --licence mit --annotations-only
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `trimtab medclm build` wrote."""
    out: Path
    """Folder; new or empty."""
    about: Annotated[About, tyro.conf.arg(name="")]
    version: str = "1.0.0"
    """Version of the set."""
    date: str = ""
    """Day of publication, as 2026-01-31; default: today."""
    shards: int = 0
    """Pictures in a webdataset shard; 0 writes none."""
    annotations_only: bool = False
    """Leave the pictures out; who has them joins the two by `trimtab medclm rejoin`."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def publish(arguments: Sequence[str]) -> int:
    """Parse and write."""
    given = parse(PublishArguments, arguments, "medclm publish")
    try:
        day = date.fromisoformat(given.date) if given.date else datetime.now(UTC).date()
    except ValueError as error:
        raise ValueError(f"--date must be a day as 2026-01-31, got {given.date!r}") from error
    found = publish_set(
        DataSetFolder(given.folder), given.out, given.about, published=day.isoformat(), version=given.version,
        shards=given.shards, annotations_only=given.annotations_only,
    )  # fmt: skip
    if given.output.json:
        print_json({"out": str(given.out), **found})
        return 0
    size = sum(found["files"].values())
    console.print(f"{given.out}: {found['rows']:,} rows, {len(found['files'])} files, {size:,} bytes", soft_wrap=True)
    console.print("README.md is the card, croissant.json the metadata; nothing was sent anywhere", soft_wrap=True)
    console.print(f"next: trimtab medclm push {given.out} --to hf://datasets/USER/NAME", soft_wrap=True)
    return 0


@dataclass(frozen=True)
class PushArguments:
    """Sends what `trimtab medclm publish` wrote to the Hugging Face Hub, in one commit: card, licence, Croissant, Parquet,
    shards, or annotations alone. Nothing else in the folder is sent, and no file that has changed since.

    Examples:
        trimtab medclm push DIR --to hf://datasets/USER/NAME
        trimtab medclm push DIR --to hf://datasets/USER/NAME --public
        trimtab medclm push DIR --to hf://datasets/USER/NAME --dry-run
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `trimtab medclm publish` wrote."""
    to: str
    """hf://datasets/USER/NAME; made if it is not there. The token is that of `hf auth login` or HF_TOKEN."""
    public: bool = False
    """Make a new data set on the Hub public."""
    message: str = ""
    """Of the commit."""
    dry_run: bool = False
    """Say what would be sent; needs no token and sends nothing."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def push(arguments: Sequence[str]) -> int:
    """Parse and send."""
    given = parse(PushArguments, arguments, "medclm push")
    name = on_hub(given.to)
    found = release_in(given.folder)
    size = sum(found.files.values())
    about = {
        "to": given.to, "licence": found.licence, "public": given.public, "files": dict(found.files), "bytes": size,
        "left_out": found.left_out,
    }  # fmt: skip
    if given.dry_run:
        if given.output.json:
            print_json({**about, "sent": None})
            return 0
        for file, bytes_ in found.files.items():
            console.print(f"{bytes_:>14,}  {file}", highlight=False, markup=False)
    place = None if given.dry_run else push_release(found, given.to, private=not given.public, message=given.message)
    if given.output.json:
        print_json({**about, "sent": place})
        return 0
    if found.left_out:
        said = f"not sent, since publish did not write them: {', '.join(found.left_out[:5])}"
        console.print(said + (" ..." if len(found.left_out) > 5 else ""), highlight=False, markup=False, soft_wrap=True)
    what = f"{len(found.files)} files, {size:,} bytes, licence {found.licence}"
    if place is None:
        seen = "public" if given.public else "private"
        console.print(f"would send {what} to {given.to} ({seen} if it is new); nothing was sent", soft_wrap=True)
    else:
        console.print(f"sent {what}: {place}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"others load it by datasets.load_dataset('{name}')", soft_wrap=True, highlight=False)
    return 0


@dataclass(frozen=True)
class RejoinArguments:
    """Puts a release of annotations together with your own copies of its pictures, found by their hashes under any names.

    Examples:
        trimtab medclm rejoin RELEASE --images DIR --out SET
        trimtab medclm rejoin RELEASE --images DIR --out SET --leave-out
        trimtab medclm rejoin RELEASE --images DIR --out SET --json
    """

    release: tyro.conf.Positional[Path]
    """Folder that `publish --annotations-only` wrote."""
    images: Path
    """Folder of the pictures, searched with all its folders."""
    out: Path
    """Folder of the set; new or empty."""
    leave_out: bool = False
    """Leave out images whose picture is not there, with their rows; else this is an error."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def rejoin(arguments: Sequence[str]) -> int:
    """Parse and join."""
    given = parse(RejoinArguments, arguments, "medclm rejoin")
    with counting_progress("rejoin", quiet=given.output.silent) as progress:
        folder = rejoin_set(given.release, given.images, given.out, leave_out=given.leave_out, progress=progress)
    counts = folder.finished().counts
    if given.output.json:
        print_json({"out": str(given.out), "counts": counts})
    else:
        said = f"{counts['images']:,} images, {counts['rows']:,} rows"
        console.print(f"{given.out}: {said}   next: trimtab medclm check {given.out}", soft_wrap=True)
    return 0

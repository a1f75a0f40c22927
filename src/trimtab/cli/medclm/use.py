"""`trimtab medclm check`, `view` and `export`: what is done with a built data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.cli.progress import counting_progress
from trimtab.medclm.building import DataSetFolder
from trimtab.medclm.building.checking import check as check_set
from trimtab.medclm.building.dialects import Dialect
from trimtab.medclm.building.exports import Target, rows_with_records
from trimtab.medclm.building.exports import export as export_set
from trimtab.medclm.records import Stage
from trimtab.medclm.reviews import identity_of
from trimtab.report.medclm.viewer import Shown, write_viewer


@dataclass(frozen=True)
class CheckArguments:
    """Validates a built data set: manifest, files, boxes, splits, every row; exit code 1 if anything is wrong.

    Examples:
        trimtab medclm check SET
        trimtab medclm check SET --decode
        trimtab medclm check SET --json
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `trimtab medclm build` wrote."""
    decode: bool = False
    """Decode every image, not only its header."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def check(arguments: Sequence[str]) -> int:
    """Parse and check."""
    given = parse(CheckArguments, arguments, "medclm check")
    with counting_progress("check", quiet=given.output.silent) as progress:
        report = check_set(DataSetFolder(given.folder), decode=given.decode, progress=progress)
    if given.output.json:
        faults = [fault.model_dump() for fault in report.faults]
        print_json({"images": report.images, "rows": report.rows, "reasons": dict(report.reasons), "faults": faults})
    else:
        for fault in report.faults[:20]:
            console.print(str(fault), highlight=False, markup=False, soft_wrap=True)
        if len(report.faults) > 20:
            console.print(f"... and {report.reasons.total() - 20:,} more (--json lists {len(report.faults):,})")
        for reason, number in report.reasons.most_common():
            console.print(f"{number:,} x {reason}", highlight=False, markup=False)
        verdict = "no faults" if not report.reasons else f"{report.reasons.total():,} faults"
        console.print(f"{report.images:,} images, {report.rows:,} rows: {verdict}")
    return 1 if report.reasons else 0


@dataclass(frozen=True)
class ViewArguments:
    """Writes DIR/view.html, which needs no server and no network; images stay beside it.

    Examples:
        trimtab medclm view SET
        trimtab medclm view SET --most 2000
        trimtab medclm view SET --json
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `trimtab medclm build` wrote."""
    most: int = 20_000
    """Rows in the page; with more, a part spread evenly over the set."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def view(arguments: Sequence[str]) -> int:
    """Parse and write the page."""
    given = parse(ViewArguments, arguments, "medclm view")
    page = write_view(DataSetFolder(given.folder), given.most)
    if given.output.json:
        print_json({"page": str(page)})
    else:
        console.print(f"viewer: {page} (open it in a browser)", soft_wrap=True)
    return 0


def write_view(folder: DataSetFolder, most: int = 20_000, title: str = "") -> Path:
    """The viewer of a data set, under its folder's name without a title; returns its page."""
    if most < 1:
        raise ValueError(f"--most must be 1 or more, got {most}")
    total = folder.finished().counts["rows"]
    step = max(total / most, 1.0)

    def rows() -> list[Shown]:
        found, due = [], 0.0
        for number, (row, image, record) in enumerate(rows_with_records(folder)):
            if number < due:
                continue
            due += step
            host = row.host
            found.append(
                Shown(
                    image=image,
                    width=record.width,
                    height=record.height,
                    overlay=f"organs/{record.organ_file}" if record.organ_file else None,
                    box=row.box.corners if row.box is not None else None,
                    question=row.question,
                    reasoning=row.reasoning,
                    answer=row.answer,
                    facets={
                        "class": row.domain.rsplit(" x ", 1)[0],
                        "organ": host.organ if host is not None else "none",
                        "stage": row.stage,
                        "type": row.question_type,
                        "split": row.split,
                        "flag": [flag.partition("=")[0] for flag in row.flags] or ["none"],
                    },
                    details={
                        "row": row.row_id,
                        "patient": row.patient,
                        "host": host.reason if host is not None else "",
                        "seed": row.seed_text,
                        "flags": ", ".join(row.flags),
                        "text by": f"{row.generator} ({row.prompt_id[:24]})",
                    },
                    name=row.row_id,
                )
            )
        return found

    name = title or folder.path.resolve().name
    return write_viewer(folder.path / "view.html", rows(), name, total, identity_of(folder))


@dataclass(frozen=True)
class ExportArguments:
    """Writes one training file per split for another trainer.

    Examples:
        trimtab medclm export SET --to trl
        trimtab medclm export SET --to llava --boxes thousand
        trimtab medclm export SET --to coco --out DIR
    """

    folder: tyro.conf.Positional[Path]
    """Folder that `trimtab medclm build` wrote."""
    to: Target
    """llava, sharegpt (LLaMA-Factory), trl, grpo (TRL, with the columns of the rewards), swift (ms-swift), or coco (boxes with
    their organs)."""
    out: Path | None = None
    """Folder for the files; default DIR/exports/FORMAT."""
    boxes: Dialect = "unit"
    """How boxes stand in texts: unit (0-1), thousand (0-1000), or as a family of models writes them."""
    model: Path | None = None
    """Folder of a model: boxes as it writes them, of pictures as its processor resizes them."""
    stages: tuple[Stage, ...] = ("easy", "medium", "hard")
    """Which stages."""
    absolute: bool = True
    """Absolute image paths; --no-absolute: relative to DIR."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def export(arguments: Sequence[str]) -> int:
    """Parse and write."""
    given = parse(ExportArguments, arguments, "medclm export")
    folder = DataSetFolder(given.folder)
    out = given.out or given.folder / "exports" / given.to
    files = export_set(folder, given.to, out, given.boxes, given.stages, model=given.model, absolute=given.absolute)
    if given.output.json:
        print_json({split: str(path) for split, path in files.items()})
        return 0
    for split, path in files.items():
        console.print(f"{split}: {path} ({path.stat().st_size:,} bytes)", soft_wrap=True)
    if not given.absolute and given.to != "coco":
        console.print(f"image paths are relative to {given.folder}", soft_wrap=True)
    return 0

"""The step "rows": plan, write, quality control, one journal line per planned row."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from trimtab.medclm.building.folder import DataSetFolder
from trimtab.medclm.building.journal import Journal, journal_items
from trimtab.medclm.building.launchers import run_threads
from trimtab.medclm.building.preparing import prepared_records
from trimtab.medclm.planning import Planned, Planner
from trimtab.medclm.quality import QualityControl
from trimtab.medclm.records import ImageRecord, Rejected, Row
from trimtab.medclm.texts.generator import GenerationError, Generator

if TYPE_CHECKING:
    from trimtab.medclm.building.options import BuildOptions


def write_rows(
    folder: DataSetFolder,
    options: BuildOptions,
    labels: Sequence[str],
    generator: Generator,
    concurrency: int,
    progress: Callable[[str, int], None] | None,
) -> Counter[str]:
    """Write `work/rows.jsonl`; returns why rows were not planned."""
    planner = Planner(
        labels, options.stages, options.balance, options.cap, seed=options.seed, box_answers=options.box_answers
    )
    planned = ((record, row) for record in prepared_records(folder) for row in planner.rows(record))
    quality = QualityControl()
    path = folder.work / "rows.jsonl"

    def write(given: tuple[ImageRecord, Planned]) -> tuple[ImageRecord, Row | Rejected]:
        record, row = given
        try:
            return record, generator.generate(record, row.lesion, row.stage, options.seed, row.ask, row.anchor)
        except GenerationError as error:
            return record, error.rejected

    with Journal(path, every=1 if concurrency > 1 else 64) as journal:
        done = journal.lines
        for item, _ in zip(journal_items(path), islice(planned, done), strict=True):
            if item["row"] is not None:
                quality.seen(
                    item["row"]["image_id"], item["row"]["stage"], item["row"]["question"], item["row"]["row_id"]
                )
        for record, row in run_threads(write, planned, concurrency):
            faults = [row] if isinstance(row, Rejected) else quality.faults(row, record)
            kept = "null" if faults or isinstance(row, Rejected) else row.model_dump_json()
            rejected = json.dumps([fault.model_dump() for fault in faults])
            about = "null" if not faults or isinstance(row, Rejected) else row.model_dump_json()
            journal.add(
                f'{{"row":{kept},"rejected":{rejected},"text":{about},"image":{json.dumps("images/" + record.file)}}}'
            )
            if progress is not None:
                progress("rows", journal.lines)
    return planner.left_out

"""The step "finish": records, rows, rejected rows, Parquet, statistics, card, manifest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trimtab.files import write_lines, write_text
from trimtab.medclm.building.card import card
from trimtab.medclm.building.folder import DataSetFolder, Manifest, listed_file
from trimtab.medclm.building.journal import journal_items
from trimtab.medclm.building.parquet import write_splits
from trimtab.medclm.building.preparing import prepared_records
from trimtab.medclm.building.statistics import Statistics
from trimtab.medclm.records import Rejected, Row


def finish(
    folder: DataSetFolder,
    manifest: Manifest,
    left_out: Mapping[str, int],
    usage: Mapping[str, Any],
    *,
    embed: bool,
    progress: Callable[[str, int], None] | None,
) -> dict[str, Any]:
    """Write all files of the data set from the journals; returns the statistics.

    Raises:
        ValueError: not one row passed quality control.
    """
    statistics = Statistics()
    reasons: Counter[str] = Counter()
    number = 0
    classes: dict[str, str] = {}
    for item in journal_items(folder.work / "images.jsonl"):
        reasons.update(one["reason"] for one in item["rejected"])
        classes |= item["classes"]
    rejected_rows = 0
    for item in journal_items(folder.work / "rows.jsonl"):
        reasons.update(one["reason"] for one in item["rejected"])
        rejected_rows += bool(item["rejected"])
        number += item["row"] is not None
    if not number:
        raise ValueError(f"{folder.path}: no row is left: {dict(reasons) or dict(left_out)}")

    def records() -> Iterator[str]:
        for record in prepared_records(folder):
            statistics.add_record(record)
            yield record.model_dump_json()

    def rows() -> Iterator[str]:
        for done, item in enumerate(journal_items(folder.work / "rows.jsonl")):
            if item["row"] is not None:
                statistics.add_row(Row.model_construct(**item["row"]))  # checked below, when the rows are read back
                yield json.dumps({"image": item["image"], **item["row"]}, ensure_ascii=False)
            if progress is not None:
                progress("finish", done + 1)

    def rejected() -> Iterator[str]:
        for item in journal_items(folder.work / "images.jsonl"):
            yield from (json.dumps(one) for one in item["rejected"])
        for item in journal_items(folder.work / "rows.jsonl"):
            for one in item["rejected"]:
                text = item["text"]
                shown = {key: text[key] for key in ("question", "reasoning", "answer")} if text else {}
                yield json.dumps(
                    Rejected(**one).model_dump() | ({"value": f"{one['value']} | {shown}"} if shown else {})
                )

    write_lines(folder.records_file, records())
    write_lines(folder.rows_file, rows())
    write_lines(folder.rejected_file, rejected())
    shards = write_splits(folder.rows(), folder.path, embed=embed)
    summary = statistics.summary(reasons, left_out, usage)
    summary["classes by name of the source"] = dict(sorted(classes.items()))
    summary["rejected"] = {"rows": rejected_rows, "all": reasons.total()}
    write_text(folder.statistics_file, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    write_text(folder.card_file, card(summary, manifest, sorted(shards)))
    files = [folder.records_file, folder.rows_file, folder.rejected_file, folder.statistics_file, folder.card_file]
    counts = {"images": statistics.images, "lesions": statistics.lesions, "rows": number, "rejected": reasons.total()}
    listed = {path.relative_to(folder.path).as_posix(): listed_file(path) for path in [*files, *shards.values()]}
    folder.write_manifest(manifest.model_copy(update={"state": "complete", "counts": counts, "files": listed}))
    return summary

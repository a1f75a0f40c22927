"""`foresee`: how much a build would read and write and how long it would take, with nothing written."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from trimtab.medclm import readers
from trimtab.medclm.building.build import items_of, preparation_of
from trimtab.medclm.building.folder import DataSetFolder
from trimtab.medclm.building.options import BuildOptions
from trimtab.medclm.hosts import decided_hosts
from trimtab.medclm.planning import Planner
from trimtab.medclm.quality import QualityControl
from trimtab.medclm.records import ImageRecord, Rejected
from trimtab.medclm.rules import host_rules
from trimtab.medclm.texts.template import TemplateGenerator

SAMPLE = 3
"""Images that are prepared for the time they take."""
TEXTS = 200
"""Texts that are written for the time they take."""


@dataclass(frozen=True)
class Foreseen:
    """What a build would do.

    Attributes:
        state: of the folder: "new", "building", "failed" or "complete" (nothing is left to do).
        images, lesions, classes: that the reader gives, before the images are opened.
        rejected: rows that the reader cannot use.
        rows: planned, before quality control; about, since organs are not known yet.
        image_seconds, row_seconds: of one image in one process, and of one text by template with its checks.
    """

    state: str
    images: int
    lesions: int
    classes: tuple[str, ...]
    rejected: int
    rows: int
    image_seconds: float
    row_seconds: float


def foresee(options: BuildOptions, out: Path) -> Foreseen:
    """Read the annotations, prepare three images in a temporary folder, plan all rows and write some of them to nowhere.

    Args:
        options, out: as for `build`; `out` is only looked at.

    Raises:
        ValueError, FileNotFoundError: as `build` would, for what it would read first; `out` holds something else.
    """
    folder = DataSetFolder(out)
    manifest = folder.manifest() if out.is_dir() else None
    if manifest is None and out.exists() and any(path.name != ".lock" for path in folder.path.iterdir()):
        raise ValueError(f"{out} is not empty and holds no data set; name another --out")
    rules = host_rules(options.preset, options.rule, options.allowed)
    reader = readers.create(options.format, **options.reader)
    records: list[ImageRecord] = []
    rejected = 0
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        preparation = preparation_of(options, Path(temporary), rules)
        for item in items_of(reader.read(options.detections, options.images), options):
            if isinstance(item, Rejected):
                rejected += 1
                continue
            if len(seconds) < SAMPLE:
                started = time.perf_counter()
                found = preparation(item)
                seconds.append(time.perf_counter() - started)
                item = found.record or item
            named = [one.model_copy(update={"label": rules.class_of(one.label)}) for one in item.lesions]
            records.append(decided_hosts(item.model_copy(update={"lesions": tuple(named)}), {}, rules))
    classes = tuple(sorted({lesion.label for record in records for lesion in record.lesions}))
    planner = Planner(
        classes, options.stages, options.balance, options.cap, seed=options.seed, box_answers=options.box_answers
    )
    planned = [(record, row) for record in records for row in planner.rows(record)]
    generator, quality = TemplateGenerator(), QualityControl()
    started = time.perf_counter()
    for record, row in planned[:TEXTS]:
        quality.faults(generator.generate(record, row.lesion, row.stage, options.seed, row.ask, row.anchor), record)
    spent = time.perf_counter() - started
    return Foreseen(
        state="new" if manifest is None else manifest.state,
        images=len(records),
        lesions=sum(len(record.lesions) for record in records),
        classes=classes,
        rejected=rejected,
        rows=len(planned),
        image_seconds=min(seconds, default=0.0),
        row_seconds=spent / max(len(planned[:TEXTS]), 1),
    )

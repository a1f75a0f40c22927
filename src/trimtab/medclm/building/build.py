"""`build`: from a detection data set to rows, in steps that stream and go on where they were interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from trimtab.files import alone, write_text
from trimtab.medclm import readers
from trimtab.medclm.building.finishing import finish
from trimtab.medclm.building.folder import DataSetFolder, Manifest, fingerprint
from trimtab.medclm.building.identity import settle
from trimtab.medclm.building.journal import Journal, journal_items
from trimtab.medclm.building.launchers import Launcher, run_local, run_ray
from trimtab.medclm.building.options import BuildOptions
from trimtab.medclm.building.preparing import OnText, Preparation, Prepared, as_text
from trimtab.medclm.building.writing import write_rows
from trimtab.medclm.records import ImageRecord, Rejected
from trimtab.medclm.rules import HostRules, host_rules, warn_unlisted
from trimtab.medclm.splits import split_of, without_leaks
from trimtab.medclm.texts.generator import Generator
from trimtab.medclm.texts.template import TemplateGenerator
from trimtab.ray_cluster import wanted_address

Progress = Callable[[str, int], None]


@dataclass(frozen=True)
class BuildResult:
    """Where the data set is and its statistics."""

    folder: DataSetFolder
    statistics: Mapping[str, Any]


def build(
    options: BuildOptions,
    out: Path,
    generator: Generator | None = None,
    workers: int = 1,
    launcher: Launcher = "local",
    concurrency: int = 1,
    progress: Progress | None = None,
    address: str | None = None,
) -> BuildResult:
    """Build the data set in `out`, or go on with it.

    Three steps: images (read, check, copy, masks, hosts; in `workers` processes or as Ray tasks), rows (plan, write, quality
    control; `concurrency` texts at a time), finish (records, rows, Parquet, statistics, card, manifest). Each step keeps a
    journal of one line per item; a stopped build goes on after the last whole line. Memory holds a bounded number of
    images; only what a reader needs to know of the annotation file grows with it.

    Args:
        options: what to build.
        out: folder; made, or holding an unfinished build with the same options, or one that failed, whatever its options.
        generator: writes the texts; without it `TemplateGenerator()`.
        workers: processes for the images.
        launcher: "ray" runs the images as Ray Data tasks instead.
        concurrency: texts at a time, for generators that wait for a server.
        progress: called with the name of the step and the number of items done.
        address: of a Ray cluster's head, `HOST:PORT`, "auto" or "local"; default RAY_ADDRESS, failing that "local".

    Raises:
        ValueError: an option is wrong; nothing answers at the address; `out` holds another data set; a source changed since
            the build began; nothing usable is left.
        FileNotFoundError: a source is missing.
    """
    address = wanted_address(launcher, address)
    generator = generator or TemplateGenerator()
    folder = DataSetFolder(out)
    reader = readers.create(options.format, **options.reader)
    rules = host_rules(options.preset, options.rule, options.allowed)
    split_of("", "", options.fractions)
    with alone(out, "building into"):
        manifest = _begun(folder, options, generator.name)
        if manifest.state == "complete":
            return BuildResult(folder, folder.statistics())
        preparation = preparation_of(options, out, rules)
        try:
            items = items_of(reader.read(options.detections, options.images), options)
            labels = _prepare(folder, preparation, items, options, workers, launcher, address, progress)
            left_out = write_rows(folder, options, labels, generator, concurrency, progress)
            usage: Mapping[str, Any] = getattr(generator, "usage", dict)()
            statistics = finish(folder, manifest, left_out, usage, embed=options.embed, progress=progress)
        except (ValueError, OSError, TypeError):
            with suppress(OSError):  # a full disk keeps the state it had
                folder.write_manifest(manifest.model_copy(update={"state": "failed"}))
            raise
        shutil.rmtree(folder.work)
        return BuildResult(folder, statistics)


def _begun(folder: DataSetFolder, options: BuildOptions, generator: str) -> Manifest:
    """The manifest of the build to go on with, or a new one."""

    given = {**json.loads(options.model_dump_json()), "generator": generator}
    inputs = {"detections": fingerprint(options.detections), "images": fingerprint(options.images)}
    for name, source in options.organs:
        for key, value in source.items():
            if isinstance(value, Path):
                inputs[f"organs {name} {key}"] = fingerprint(value)
    found = folder.manifest()
    if found is None:
        strangers = sorted(path.name for path in folder.path.iterdir() if path.name != ".lock")
        if strangers:
            raise ValueError(
                f"{folder.path} is not empty and holds no data set ({', '.join(strangers[:5])}); name another --out"
            )
        found = Manifest(trimtab=version("trimtab"), options=given, inputs=inputs)
        folder.write_manifest(found)
        return found
    # an option that did not exist yet had the value that it has when it is not given
    before = {key: BuildOptions.model_fields[key].default for key in given if key in BuildOptions.model_fields}
    found = found.model_copy(update={"options": {**before, **found.options}})
    if found.state == "failed" and (found.options, found.inputs) != (given, inputs):
        folder.clear()
        return _begun(folder, options, generator)
    different = sorted(key for key in given | found.options if given.get(key) != found.options.get(key))
    if different:
        raise ValueError(
            f"{folder.path} holds a data set built with other options: "
            + "; ".join(f"{key} was {found.options.get(key)!r}, is {given.get(key)!r}" for key in different)
            + "; name another --out"
        )
    changed = sorted(key for key in inputs | found.inputs if inputs.get(key) != found.inputs.get(key))
    if changed:
        raise ValueError(f"{folder.path}: {', '.join(changed)} changed since the build began; name another --out")
    return found


def preparation_of(options: BuildOptions, out: Path, rules: HostRules) -> Preparation:
    """What is done with each image of a build into `out`."""
    sources = tuple((name, tuple(sorted(given.items()))) for name, given in options.organs)
    return Preparation(options.images, out, rules, sources, options.without_organs)


def items_of(items: Iterator[ImageRecord | Rejected], options: BuildOptions) -> Iterator[ImageRecord | Rejected]:
    """`items` with their splits; an id or a file that comes again is rejected."""
    seen: set[str] = set()
    for item in items if options.split == "patient" else without_leaks(items):
        if isinstance(item, Rejected):
            yield item
            continue
        keys = {f"id {item.image_id}", f"file {item.file}"}
        if keys & seen:
            yield Rejected(file=item.source, row=item.image_id, reason="image occurs twice", value=item.file)
            continue
        seen |= keys
        if options.split == "patient":
            split = split_of(item.patient, item.source, options.fractions, options.seed)
            yield item.model_copy(update={"split": split})
        else:
            yield item


def _prepare(
    folder: DataSetFolder,
    preparation: Preparation,
    items: Iterator[ImageRecord | Rejected],
    options: BuildOptions,
    workers: int,
    launcher: Launcher,
    address: str | None,
    progress: Progress | None,
) -> list[str]:
    """The step "images"; returns the classes found."""
    path, done = folder.work / "prepared.jsonl", folder.work / "prepared.done"
    if not _is_whole(path, done):
        with Journal(path, every=16) as journal:
            rest = islice(items, journal.lines, None)
            if launcher == "ray":
                results = run_ray(OnText(preparation), map(as_text, rest), folder.work / "ray", address)
            else:
                results = (found.model_dump_json() for found in run_local(preparation, rest, workers))
            for text in results:
                journal.add(text)
                if progress is not None:
                    progress("images", journal.lines)
        write_text(done, f"{journal.lines}\n")
    path = settle(folder, options)
    labels: set[str] = set()
    named: set[tuple[str, str]] = set()
    usable = 0
    for item in journal_items(path):
        found = Prepared.model_validate(item)
        if found.record is not None:
            usable += 1
            labels |= {lesion.label for lesion in found.record.lesions}
            named |= found.classes.items()
    if not usable:
        first = next(
            (str(one) for item in journal_items(path) for one in Prepared.model_validate(item).rejected),
            "the set is empty",
        )
        raise ValueError(
            f"nothing usable is left of {preparation.images}: no image could be taken; first fault: {first}"
        )
    if preparation.organ_sources:
        warn_unlisted((source for source, _ in named), preparation.rules)
    return sorted(labels)


def _is_whole(journal: Path, done: Path) -> bool:
    """Whether the journal holds all the lines that `done` counts; lines that a crash took off its end are made again."""
    if not done.is_file():
        return False
    with Journal(journal) as found:
        return done.read_text(encoding="utf-8", errors="replace").strip() == str(found.lines)

"""`trimtab medclm build`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.table import Table

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, print_json
from trimtab.cli.dry_run import Part, show_parts
from trimtab.cli.medclm.source_flags import organ_sources, pairs
from trimtab.cli.progress import counting_progress
from trimtab.medclm.building import BuildOptions, BuildResult
from trimtab.medclm.building import build as build_set
from trimtab.medclm.building.foresee import foresee
from trimtab.medclm.building.options import BuildSettings
from trimtab.medclm.texts.chat import ChatGenerator
from trimtab.medclm.texts.generator import Generator
from trimtab.medclm.texts.template import TemplateGenerator


@dataclass(frozen=True)
class Chat:
    """Only for --generator chat."""

    model: str = ""
    """Model name as the server knows it."""
    base_url: str = "https://api.openai.com/v1"
    """An OpenAI-compatible server; its key is read from the environment variable OPENAI_API_KEY."""
    concurrency: int = 4
    """Requests at a time."""
    price_in: float = 0.0
    """Price of a million prompt tokens, for the cost count."""
    price_out: float = 0.0
    """Price of a million completion tokens."""
    timeout: float = 120.0
    """Seconds to wait for one reply."""
    cache: Path | None = None
    """Folder of replies already paid for; default OUT.replies beside the output."""


@dataclass(frozen=True)
class BuildArguments:
    """Ties every box to an organ, writes questions, reasoning and answers at three stages, checks them, and writes
    Parquet, JSON lines and a data card. Interrupted, the same command goes on.

    Examples:
        trimtab medclm build --detections A.json --images DIR --out SET
        trimtab medclm build --detections A.json --images DIR --organs M --out SET
        trimtab medclm build --detections D --format voc --images DIR --out SET
    """

    settings: Annotated[BuildSettings, tyro.conf.arg(name="")]
    out: Path
    """Folder of the data set; new, or of an interrupted build."""
    reader: tuple[str, ...] = ()
    """Options of the reader as KEY=VALUE (YAML), such as clip=true anatomy=[optic_disc]."""
    modality: str = "image"
    """Such as "chest X-ray"; a domain is class x modality."""
    trust_sizes: bool = False
    """Take the sizes that a COCO or VOC file states without opening the images first; a build still finds wrong ones."""
    organs: Path | None = None
    """Organ masks: a folder or file. Without it hosts are unknown."""
    organ_format: str | None = None
    """Source of the masks: png, labels, rle, nifti, coco, retina, torchxrayvision, totalsegmentator, cxas. Default: by what
    the folder holds."""
    organ_options: tuple[str, ...] = ()
    """Options of the organ source as KEY=VALUE (YAML)."""
    anatomy: Literal["general", "chest", "retina"] = "general"
    """Hierarchy, allow-lists, sides and zones."""
    host_in: tuple[str, ...] = ()
    """Organs that may hold a class, as CLASS=ORGAN or CLASS=[ORGAN, ORGAN]; beside the allow-list of --anatomy."""
    generator: Literal["template", "chat"] = "template"
    """Who writes the texts."""
    chat: Chat = Chat()
    workers: int = min(os.cpu_count() or 1, 2)
    """Processes for the images."""
    launcher: Literal["local", "ray"] = "local"
    """ray: the images as Ray Data tasks (needs trimtab[ray])."""
    address: str | None = None
    """Of a Ray cluster's head, HOST:PORT or auto; default RAY_ADDRESS, failing that a cluster of this machine."""
    strict: bool = False
    """Exit with code 1 if anything was rejected."""
    dry_run: bool = False
    """Say what would be read, asked and written and about how long it would take; asks no server, writes nothing."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def build(arguments: Sequence[str]) -> int:
    """Parse and build."""
    given = parse(BuildArguments, arguments, "medclm build")
    if given.trust_sizes and given.settings.format not in ("coco", "voc"):
        raise ValueError(f"--trust-sizes: files of the format {given.settings.format} state no sizes; coco and voc do")
    trusted = {"trust_sizes": True} if given.trust_sizes else {}
    options = BuildOptions(
        **dict(given.settings),
        reader={"modality": given.modality, **trusted, **pairs(given.reader, "--reader")},
        organs=organ_sources(given.organs, given.organ_format, pairs(given.organ_options, "--organ-options")),
        preset=given.anatomy,
        allowed={
            label: tuple(organs) if isinstance(organs, list) else (str(organs),)
            for label, organs in pairs(given.host_in, "--host-in").items()
        },
    )
    if given.dry_run:
        return _foreseen(options, given)
    result = build_and_show(
        options,
        given.out,
        given.output,
        generator=_generator(given),
        workers=given.workers,
        launcher=given.launcher,
        address=given.address,
        concurrency=given.chat.concurrency if given.generator == "chat" else 1,
    )
    return 1 if given.strict and result.statistics["rejected"]["all"] else 0


def _foreseen(options: BuildOptions, given: BuildArguments) -> int:
    found = foresee(options, given.out)
    facts: dict[str, Any] = {
        "images": found.images, "lesions": found.lesions, "classes": list(found.classes),
        "rejected by the reader": found.rejected, "rows, about": found.rows,
    }  # fmt: skip
    if found.state != "new":
        facts["there already"] = "a finished set: nothing would be done" if found.state == "complete" else found.state
    parts = [Part("images read, hosted, copied", found.images, found.image_seconds / max(given.workers, 1))]
    if given.generator == "chat":
        facts["requests"] = (
            f"about {found.rows:,} to {given.chat.model} at {given.chat.base_url}, less the replies kept"
        )
    else:
        parts.append(Part("texts written and checked, about", found.rows, found.row_seconds))
    return show_parts([] if found.state == "complete" else parts, given.out, given.output, facts)


def build_and_show(
    options: BuildOptions,
    out: Path,
    output: Output,
    *,
    generator: Generator | None = None,
    workers: int = 1,
    launcher: Literal["local", "ray"] = "local",
    address: str | None = None,
    concurrency: int = 1,
) -> BuildResult:
    """Build with a progress bar and print what came out; arguments as for `building.build`, by default texts by template."""
    generator = generator or TemplateGenerator()
    with counting_progress("build", quiet=output.silent) as progress:
        result = build_set(options, out, generator, workers, launcher, concurrency, progress, address)
    statistics = result.statistics
    if output.json:
        print_json({"out": str(out), **statistics})
        return result
    table = Table(
        title=f"{statistics['rows']:,} rows, {statistics['lesions']:,} lesions, {statistics['images']:,} images"
    )
    for column in (
        "question type",
        "rows",
        "answers",
        "guess from the text, train",
        "unseen",
        "unseen, box numbers read",
    ):
        table.add_column(column, justify="left" if column == "question type" else "right")
    for kind, prior in statistics["priors"].items():
        parts = (prior[part] for part in ("train", "unseen", "unseen, box numbers read"))
        shares = ("-" if part is None else f"{part:.1%}" for part in parts)
        table.add_row(kind, f"{prior['rows']:,}", f"{prior['answers']:,}", *shares)
    console.print(table)
    for name in ("rows by stage", "lesions by organ", "yes and no", "rejected by reason", "not asked"):
        if statistics.get(name):
            counts = ", ".join(f"{key} {value:,}" for key, value in statistics[name].items())
            console.print(f"{name}: {counts}", highlight=False, soft_wrap=True)
    if statistics["rejected"]["all"]:
        console.print(f"rejected rows: {result.folder.rejected_file}", soft_wrap=True)
    console.print(f"data set: {out} (README.md is its card)", soft_wrap=True)
    return result


def _generator(given: BuildArguments) -> Generator:
    if given.generator == "template":
        return TemplateGenerator()
    cache = given.chat.cache or given.out.with_name(f"{given.out.name}.replies")
    return ChatGenerator(
        given.chat.model,
        given.out / "images",
        cache,
        base_url=given.chat.base_url,
        timeout=given.chat.timeout,
        price_in=given.chat.price_in,
        price_out=given.chat.price_out,
    )

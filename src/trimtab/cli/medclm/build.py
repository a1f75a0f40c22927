"""`trimtab medclm build` and `trimtab medclm demo`."""

from __future__ import annotations

import importlib.util
import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
import yaml
from rich.table import Table

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console, counting_progress, print_json
from trimtab.cli.medclm.use import write_view
from trimtab.inputs import named, shortened
from trimtab.medclm import organs
from trimtab.medclm.building import BuildOptions, BuildResult
from trimtab.medclm.building import build as build_set
from trimtab.medclm.records import Stage
from trimtab.medclm.rules import RuleName
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
    """`trimtab medclm build --detections FILE --format coco --images DIR --organs DIR --out DIR`: ties every box to an organ, writes questions, reasoning and answers at three stages, checks them, and writes Parquet, JSON lines and a data card. Interrupted, the same command goes on."""  # noqa: E501

    detections: Path
    """Annotation file or folder."""
    images: Path
    """Folder of the images."""
    out: Path
    """Folder of the data set; new, or of an interrupted build."""
    format: str = "coco"
    """Reader: coco, voc, yolo, vindr, nih, rsna, deeplesion, dicom, masks."""
    reader: tuple[str, ...] = ()
    """Options of the reader as KEY=VALUE (YAML), such as clip=true anatomy=[optic_disc]."""
    modality: str = "image"
    """Such as "chest X-ray"; a domain is class x modality."""
    organs: Path | None = None
    """Organ masks: a folder or file. Without it hosts are unknown."""
    organ_format: str | None = None
    """Source of the masks: png, labels, rle, nifti, coco, retina, torchxrayvision, totalsegmentator, cxas. Default: by what
    the folder holds."""
    organ_options: tuple[str, ...] = ()
    """Options of the organ source as KEY=VALUE (YAML)."""
    without_organs: Literal["keep", "reject"] = "keep"
    """Images whose masks cannot be had: keep them with unknown hosts, or reject them. Both are reported."""
    anatomy: Literal["general", "chest", "retina"] = "general"
    """Hierarchy, allow-lists, sides and zones."""
    host_in: tuple[str, ...] = ()
    """Organs that may hold a class, as CLASS=ORGAN or CLASS=[ORGAN, ORGAN]; beside the allow-list of --anatomy."""
    rule: RuleName = "inside_fraction"
    """How the host organ is decided."""
    generator: Literal["template", "chat"] = "template"
    """Who writes the texts."""
    chat: Chat = Chat()
    split: Literal["patient", "source"] = "patient"
    """By hash of the patient, or as the source says."""
    fractions: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Train, validation, test of the split by patient."""
    stages: tuple[Stage, ...] = ("easy", "medium", "hard")
    """Which stages to write."""
    balance: bool = True
    """Choose questions so that no answer is too common among its like."""
    cap: float = 0.6
    """Greatest share of one answer among the answers to questions of its like."""
    seed: int = 0
    """Chooses wordings and breaks ties."""
    embed: bool = True
    """Store image bytes in the Parquet files."""
    workers: int = min(os.cpu_count() or 1, 2)
    """Processes for the images."""
    launcher: Literal["local", "ray"] = "local"
    """ray: the images as Ray Data tasks (needs trimtab[ray])."""
    strict: bool = False
    """Exit with code 1 if anything was rejected."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def build(arguments: Sequence[str]) -> int:
    """Parse and build."""
    given = parse(BuildArguments, arguments, "medclm build")
    options = BuildOptions(
        detections=given.detections,
        format=given.format,
        images=given.images,
        reader={"modality": given.modality, **pairs(given.reader, "--reader")},
        organs=_organs(given.organs, given.organ_format, pairs(given.organ_options, "--organ-options")),
        without_organs=given.without_organs,
        preset=given.anatomy,
        rule=given.rule,
        allowed={
            label: tuple(organs) if isinstance(organs, list) else (str(organs),)
            for label, organs in pairs(given.host_in, "--host-in").items()
        },
        split=given.split,
        fractions=given.fractions,
        stages=given.stages,
        balance=given.balance,
        cap=given.cap,
        seed=given.seed,
        embed=given.embed,
    )
    generator = _generator(given)
    concurrency = given.chat.concurrency if given.generator == "chat" else 1
    result = _built(options, given.out, generator, given.workers, given.launcher, concurrency, given.output)
    return 1 if given.strict and result.statistics["rejected"]["all"] else 0


@dataclass(frozen=True)
class DemoArguments:
    """`trimtab medclm demo [--out DIR]`: draws chest X-rays with findings and organ masks, builds a question set from them, makes the viewer, trains tiny-llava on it from easy to hard, evaluates it, and writes the report; nothing is downloaded. --data DIR takes a folder with annotations_coco.json, images/ and organ annotations of an optic disc instead."""  # noqa: E501

    out: Path = Path("medclm-demo")
    """Folder: source/ (drawn images), set/ (the data set), set/view.html, run/ (the model), run/report.html."""
    data: Path | None = None
    """Real data: a folder with annotations_coco.json and images/."""
    images: int = 48
    """How many to draw."""
    size: int = 384
    """Side of a drawn image in pixels."""
    seed: int = 0
    """Of drawing and wording."""
    workers: int = min(os.cpu_count() or 1, 2)
    """Processes for the images."""
    train: bool = True
    """Train and evaluate tiny-llava as well (needs trimtab[training])."""
    output: Annotated[Output, tyro.conf.arg(name="")] = Output()


def demo(arguments: Sequence[str]) -> int:
    """Draw (or take real data), build, view, train, evaluate."""
    given = parse(DemoArguments, arguments, "medclm demo")
    if given.data is not None:
        options = real_options(given.data, given.seed)
    else:
        from trimtab.medclm.phantom.files import write_phantom

        source = given.out / "source"
        if not (source / "detections.json").is_file():
            if not given.output.silent:
                console.print(f"drawing {given.images} chest X-rays of {given.size} x {given.size} pixels ...")
            write_phantom(source, given.images, given.seed, given.size)
        options = BuildOptions(
            detections=source / "detections.json",
            format="coco",
            images=source / "images",
            reader={"modality": "chest X-ray"},
            organs=(("rle", {"folder": source / "organs"}),),
            preset="chest",
            fractions=(0.7, 0.15, 0.15),
            seed=given.seed,
        )
    result = _built(options, given.out / "set", TemplateGenerator(), given.workers, "local", 1, given.output)
    title = "drawn chest X-rays" if given.data is None else given.data.resolve().name
    page = write_view(result.folder, title=title)
    if not given.output.json:
        console.print(f"viewer: {page} (open it in a browser)", soft_wrap=True)
    if given.train:
        if any(importlib.util.find_spec(name) is None for name in ("transformers", "trl", "peft")):
            console.print("not trained: pip install 'trimtab[training]'", markup=False)
            return 0
        from trimtab.cli.medclm.demo import train_and_evaluate

        train_and_evaluate(result.folder.path, given.out, given.seed, given.output)
    return 0


def real_options(data: Path, seed: int) -> BuildOptions:
    """The build of a folder with annotations_coco.json and images/; a class optic_disc makes it one of fundus photographs."""
    detections = data / "annotations_coco.json"
    if not detections.is_file() or not (data / "images").is_dir():
        raise FileNotFoundError(
            f"--data {data} must hold annotations_coco.json and images/ (and, for fundus photographs, a class "
            "optic_disc); for other layouts use `trimtab medclm build`"
        )
    from trimtab.medclm.coco import load_coco

    classes = {category.get("name") for category in load_coco(detections)["categories"]}
    retina = "optic_disc" in classes
    field = data / "retina_fov_masks_derived"
    disc = {"disc": detections, **({"field": field} if field.is_dir() else {})}
    return BuildOptions(
        detections=detections,
        format="coco",
        images=data / "images",
        reader={"modality": "fundus photograph", "anatomy": ("optic_disc",)} if retina else {},
        organs=(("retina", disc),) if retina else (),
        preset="retina" if retina else "general",
        split="source",
        seed=seed,
    )


def _built(
    options: BuildOptions,
    out: Path,
    generator: Generator,
    workers: int,
    launcher: Literal["local", "ray"],
    concurrency: int,
    output: Output,
) -> BuildResult:
    with counting_progress("build", output.silent) as progress:
        result = build_set(options, out, generator, workers, launcher, concurrency, progress)
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
    from trimtab.medclm.texts.chat import ChatGenerator

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


def pairs(items: Sequence[str], flag: str) -> dict[str, Any]:
    """KEY=VALUE items, values read as YAML.

    >>> pairs(["clip=true", "anatomy=[optic_disc]"], "--reader")
    {'clip': True, 'anatomy': ['optic_disc']}
    """
    found: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise ValueError(f"{flag} takes KEY=VALUE, got {item!r}")
        with named(f"{flag} {shortened(item, 80)}", "is not readable as YAML"):
            found[key] = yaml.safe_load(value)
    return found


def _organs(path: Path | None, name: str | None, options: Mapping[str, Any]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """(name, options) of the organ source, its first argument being `path`, options that are paths made paths."""
    if path is None and name is None:
        if options:
            raise ValueError("--organ-options need --organs or --organ-format")
        return ()
    chosen = name or _seen(path)
    wanted = list(inspect.signature(organs.source_class(chosen)).parameters.values())
    unknown = sorted(set(options) - {parameter.name for parameter in wanted})
    if unknown:
        names = ", ".join(parameter.name for parameter in wanted)
        raise ValueError(f"organ source {chosen} has no option {', '.join(unknown)}; it has {names}")
    found = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
    for parameter in wanted:
        if parameter.name in found and "Path" in str(parameter.annotation) and found[parameter.name] is not None:
            found[parameter.name] = Path(str(found[parameter.name]))
    if path is not None:
        found[wanted[0].name] = path
    missing = [one.name for one in wanted if one.default is inspect.Parameter.empty and one.name not in found]
    if missing:
        flags = ["--organs PATH" if name == wanted[0].name else f"--organ-options {name}=..." for name in missing]
        raise ValueError(f"organ source {chosen} needs {', '.join(missing)}: give {' and '.join(flags)}")
    return ((chosen, found),)


def _seen(path: Path | None) -> str:
    """The organ source that a folder or file looks like."""
    if path is None or not path.exists():
        raise FileNotFoundError(f"--organs {path} does not exist")
    if path.is_file():
        return "coco"
    if (path / "labels.json").is_file():
        return "labels"
    for pattern, name in (("*.json", "rle"), ("*.nii*", "nifti"), ("*/*.png", "png")):
        if next(path.glob(pattern), None) is not None:
            return name
    raise ValueError(
        f"--organs {path}: no masks that are known; say which with --organ-format {', '.join(organs.names())}"
    )

"""`trimtab medclm demo`."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from trimtab.cli.arguments import Output, parse
from trimtab.cli.console import console
from trimtab.cli.medclm.build import build_and_show
from trimtab.cli.medclm.demo_training import train_and_evaluate
from trimtab.cli.medclm.use import write_view
from trimtab.medclm.building import BuildOptions
from trimtab.medclm.coco import load_coco
from trimtab.medclm.phantom.files import write_phantom


@dataclass(frozen=True)
class DemoArguments:
    """Draws chest X-rays with findings and organ masks, builds a question set from them, makes the viewer, teaches the
    vision tower of tiny-llava, trains it on all stages, evaluates it, says whether it looks, and writes the report.
    Nothing is downloaded.

    Examples:
        trimtab medclm demo
        trimtab medclm demo --images 1500 --out more
        trimtab medclm demo --data DIR --no-train
    """

    out: Path = Path("medclm-demo")
    """Folder: source/ (drawn images), set/ (the data set), set/view.html, run/ (the model), run/report.html."""
    data: Path | None = None
    """Real data: a folder with annotations_coco.json and images/."""
    images: int = 600
    """How many to draw; tiny-llava needs some hundreds to learn to see."""
    size: int = 192
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
    result = build_and_show(options, given.out / "set", given.output, workers=given.workers)
    title = "drawn chest X-rays" if given.data is None else given.data.resolve().name
    page = write_view(result.folder, title=title)
    if not given.output.json:
        console.print(f"viewer: {page} (open it in a browser)", soft_wrap=True)
    if given.train:
        if any(importlib.util.find_spec(name) is None for name in ("transformers", "trl", "peft")):
            console.print("not trained: pip install 'trimtab[training]'", markup=False)
            return 0
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

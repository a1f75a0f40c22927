"""How does `medclm build` scale, how fast are its readers, how fast does the viewer open?

Build: rows per CPU second and growth of memory at 1e3, 1e4 and 1e5 lesions (ten to an image of 64 x 64 pixels, masks of two
lungs, template generator, one process), each in a fresh process after a small build has loaded everything. Readers: COCO and
VOC files of 5,000 boxes on 500 images against supervision's and pycocotools' loading of the same files; ours also opens every
image to check its size, which the bar allows for by letting the others do so too. Viewer: a page of 1e4 rows in headless
Chromium.

`python benchmarks/medclm_build.py [readers] [trusted] [viewer] [scale [LESIONS ...]] [ray [LESIONS]]` measures some of it and
keeps the other figures. `ray` (default 1e5 lesions), measured only when asked for, sets a build with its images as tasks of a
cluster on this machine beside one process: wall seconds, so on a quiet machine alone.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from harness import RESULTS, interleaved, paired_ratio, peak_extra_bytes, record
from PIL import Image

from trimtab.medclm import readers
from trimtab.medclm.building import BuildOptions, build
from trimtab.medclm.organs.rle import write_organs
from trimtab.medclm.records import ImageRecord, Rejected

PER_IMAGE, SIDE = 10, 64
SIZES = (1_000, 10_000, 100_000)
LABELS = ("nodule", "mass", "effusion")
BEFORE = 524
"""Rows per CPU second of a build of 100,000 lesions on a quiet machine, before rows had boxes as answers and steps."""
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_set(folder: Path, lesions: int) -> BuildOptions:
    """A COCO file with `lesions` boxes, its images and masks."""
    generator = np.random.default_rng(0)
    right, left = np.zeros((SIDE, SIDE), dtype=bool), np.zeros((SIDE, SIDE), dtype=bool)
    right[4:60, 2:30], left[4:60, 34:62] = True, True
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(lesions // PER_IMAGE):
        name = f"{number:06d}"
        Image.fromarray(generator.integers(0, 255, (SIDE, SIDE), dtype=np.uint8)).save(
            folder / "images" / f"{name}.png"
        )
        write_organs(folder / "organs" / f"{name}.json", {"right lung": right, "left lung": left})
        images.append(
            {"id": number, "file_name": f"{name}.png", "width": SIDE, "height": SIDE, "patient": f"p{number // 2}"}
        )
        places = generator.choice(48 * 48, PER_IMAGE, replace=False)
        for place in places:
            box = [int(place % 48), int(place // 48), *(int(side) for side in generator.integers(3, 14, 2))]
            annotation = {"id": len(annotations) + 1, "image_id": number, "category_id": int(generator.integers(3)) + 1}
            annotations.append({**annotation, "bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": n, "name": label} for n, label in enumerate(LABELS, start=1)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "set.json").write_text(json.dumps(document))
    return BuildOptions(
        detections=folder / "set.json",
        format="coco",
        images=folder / "images",
        organs=(("rle", {"folder": folder / "organs"}),),
        preset="chest",
    )


def write_voc(folder: Path, document: Any) -> None:
    """The same boxes as VOC files."""
    folder.mkdir()
    boxes: dict[int, list[str]] = {}
    for one in document["annotations"]:
        x, y, w, h = one["bbox"]
        corners = f"<xmin>{x + 1}</xmin><ymin>{y + 1}</ymin><xmax>{x + w}</xmax><ymax>{y + h}</ymax>"
        label = LABELS[one["category_id"] - 1]
        boxes.setdefault(one["image_id"], []).append(f"<object><name>{label}</name><bndbox>{corners}</bndbox></object>")
    for image in document["images"]:
        size = f"<size><width>{SIDE}</width><height>{SIDE}</height><depth>1</depth></size>"
        text = f"<annotation><filename>{image['file_name']}</filename>{size}{''.join(boxes[image['id']])}</annotation>"
        (folder / f"{Path(image['file_name']).stem}.xml").write_text(text)


def measured(lesions: int, launcher: Literal["local", "ray"] = "local") -> dict[str, Any]:
    """One build from this process: rows, CPU (of this process alone) and wall seconds, growth of memory in MiB."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build(write_set(folder / "small", 100), folder / "first")
        options = write_set(folder / "source", lesions)
        cpu, wall = time.process_time(), time.perf_counter()
        grown = peak_extra_bytes(lambda: build(options, folder / "out", launcher=launcher), 0.02)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        rows = sum(1 for _ in (folder / "out" / "rows.jsonl").open())
    return {"lesions": lesions, "rows": rows, "cpu": cpu, "wall": wall, "grown": grown / 2**20}


def scale(sizes: Sequence[int]) -> list[dict[str, Any]]:
    return scale_rows([in_child(lesions) for lesions in sizes])


def in_child(lesions: int, launcher: str = "local") -> dict[str, Any]:
    """`measured` in a fresh process."""
    command = [sys.executable, __file__, "--child", str(lesions), launcher]
    found: dict[str, Any] = json.loads(
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
    )
    print(launcher, found, flush=True)
    return found


def launched(lesions: int) -> list[dict[str, Any]]:
    """The same build with its images as Ray tasks on this machine's cores, and in one process."""
    alone, cluster = (in_child(lesions, launcher) for launcher in ("local", "ray"))
    if cluster["rows"] != alone["rows"]:
        raise ValueError(f"Ray wrote {cluster['rows']} rows, one process {alone['rows']}")
    question = f"build of {lesions:,} lesions on {os.cpu_count()} cores, wall seconds: Ray / one process"
    more = {f"seconds_{name}": round(one["wall"], 1) for name, one in (("ray", cluster), ("one_process", alone))}
    speed = alone["rows"] / alone["cpu"]
    return [
        {
            "question": question,
            "ratio": cluster["wall"] / alone["wall"],
            "bar": "reported as it is",
            "met": True,
            **more,
        },
        {
            "question": f"the same in one process, {alone['rows']:,} rows: rows per CPU second",
            "ratio": round(speed, 1),
            "bar": f">= {BEFORE}",
            "met": speed >= BEFORE,
        },
    ]


def scale_rows(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is recorded of the builds measured, smallest first."""
    rows: list[dict[str, Any]] = []
    for one in found:
        rows.append(
            {
                "question": f"build of {one['lesions']:,} lesions, {one['rows']:,} rows: rows per CPU second",
                "ratio": round(one["rows"] / one["cpu"], 1),
                "bar": "reported as it is",
                "met": True,
                "memory_grown_mib": round(one["grown"], 1),
            }
        )
    for small, large in itertools.pairwise(found):
        times = (large["cpu"] / large["rows"]) / (small["cpu"] / small["rows"])
        name = f"{large['lesions']:,} to {small['lesions']:,} lesions"
        rows.append({"question": f"CPU time of a row, {name}", "ratio": times, "bar": "<= 1.2", "met": times <= 1.2})
        more = large["grown"] - small["grown"]
        rows.append(
            {
                "question": f"memory the build takes, {name}: MiB more",
                "ratio": more,
                "bar": "<= 32 MiB",
                "met": more <= 32,
            }
        )
    return rows


def reading() -> list[dict[str, Any]]:
    import supervision
    from pycocotools.coco import COCO

    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = write_set(folder / "source", 5_000)
        document = json.loads(options.detections.read_text())
        write_voc(folder / "voc", document)

        def ours(kind: str, path: Path) -> list[ImageRecord | Rejected]:
            return list(readers.create(kind).read(path, options.images))

        def sizes(paths: Any) -> None:
            for path in paths:
                with Image.open(path) as picture:
                    assert picture.size == (SIDE, SIDE)

        def pycocotools(path: Path, *, check: bool) -> int:
            with contextlib.redirect_stdout(io.StringIO()):
                found = COCO(str(path))
            if check:
                sizes(options.images / image["file_name"] for image in found.imgs.values())
            return sum(len(found.loadAnns(found.getAnnIds(imgIds=[image]))) for image in found.imgs)

        def supervised(kind: str, *, check: bool) -> int:
            if kind == "coco":
                found = supervision.DetectionDataset.from_coco(str(options.images), str(options.detections))
            else:
                found = supervision.DetectionDataset.from_pascal_voc(str(options.images), str(folder / "voc"))
            if check:
                sizes(found.image_paths)
            return sum(len(one) for one in found.annotations.values())

        paths = {"coco": options.detections, "voc": folder / "voc"}
        for kind, path in paths.items():
            read = ours(kind, path)
            assert not any(isinstance(one, Rejected) for one in read)
            total = sum(len(one.lesions) for one in read if isinstance(one, ImageRecord))
            assert total == supervised(kind, check=False) == 5_000 == pycocotools(options.detections, check=False)
        pairs: list[tuple[str, str, Any]] = [
            ("coco", "supervision", lambda: supervised("coco", check=True)),
            ("coco", "pycocotools", lambda: pycocotools(options.detections, check=True)),
            ("voc", "supervision", lambda: supervised("voc", check=True)),
        ]
        for kind, other, call in pairs:
            variants = {"ours": lambda kind=kind: ours(kind, paths[kind]), "other": call}
            ratio = paired_ratio(variants, "ours", "other", repeats=9, warm_up=1)
            question = f"reading 5,000 {kind} boxes of 500 images, sizes checked: trimtab / {other}"
            rows.append({"question": question, "ratio": ratio, "bar": "<= 1.2", "met": ratio <= 1.2})
    return rows


def trusted() -> list[dict[str, Any]]:
    """COCO files whose sizes are trusted, record by record as a build takes them; pycocotools' index with all annotations."""
    from pycocotools.coco import COCO

    def indexed(path: Path) -> int:
        with contextlib.redirect_stdout(io.StringIO()):
            found = COCO(str(path))
        return sum(len(found.loadAnns(found.getAnnIds(imgIds=[image]))) for image in found.imgs)

    rows = []
    with tempfile.TemporaryDirectory() as name:
        options = write_set(Path(name) / "source", 5_000)
        reader = readers.create("coco", trust_sizes=True)
        document = json.loads(options.detections.read_text())
        outlined = Path(name) / "outlined.json"
        turns = np.linspace(0, 2 * np.pi, 24, endpoint=False)  # as sets with masks have them: 24 corners
        for one in document["annotations"]:
            x, y, w, h = one["bbox"]
            ring = np.stack([x + w / 2 + w / 2 * np.cos(turns), y + h / 2 + h / 2 * np.sin(turns)], axis=1)
            one["segmentation"] = [ring.round(2).ravel().tolist()]
        outlined.write_text(json.dumps(document))

        def ours(path: Path) -> int:
            return sum(len(one.lesions) for one in reader.read(path, options.images) if isinstance(one, ImageRecord))

        for what, path in (("boxes", options.detections), ("boxes with outlines of 24 corners", outlined)):
            assert ours(path) == indexed(path) == 5_000
            variants = {"ours": lambda path=path: ours(path), "other": lambda path=path: indexed(path)}
            ratio = paired_ratio(variants, "ours", "other", repeats=9, warm_up=1)
            question = f"5,000 coco {what}, sizes trusted, no image opened by either: trimtab / pycocotools"
            rows.append({"question": question, "ratio": ratio, "bar": "<= 1.2", "met": ratio <= 1.2})
    return rows


def viewing() -> list[dict[str, Any]]:
    """Seconds from the request to the first row shown, 1e4 rows, median of five in one browser."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    from trimtab.cli.medclm.use import write_view

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        result = build(write_set(folder / "source", 8_000), folder / "out")
        page = write_view(result.folder, most=10_000)
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM or "chromium"
        for flag in (
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--user-data-dir={folder}/p",
        ):
            options.add_argument(flag)
        driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))

        def opened() -> None:
            driver.get(page.as_uri())
            assert driver.execute_script("return document.documentElement.dataset.ready") == "yes"

        driver.get("about:blank")
        seconds = interleaved({"open": opened}, repeats=5, warm_up=1)["open"].median
        shown = driver.execute_script("return document.getElementById('count').textContent")
        driver.quit()
        print(shown, page.stat().st_size, "bytes")
    return [
        {
            "question": f"viewer opens {shown.split(' rows')[0]} rows: seconds",
            "ratio": seconds,
            "bar": "< 2 s",
            "met": seconds < 2,
        }
    ]


def main() -> None:
    words = sys.argv[1:]
    if words[:1] == ["--child"]:
        print(json.dumps(measured(int(words[1]), "ray" if words[2:] == ["ray"] else "local")))
        return
    sizes = tuple(int(word) for word in words if word.isdigit()) or SIZES
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "readers": reading,
        "trusted": trusted,
        "viewer": viewing,
        "scale": lambda: scale(sizes),
        "ray": lambda: launched(max(sizes)),
    }
    kept = RESULTS / "medclm_build.json"
    rows = json.loads(kept.read_text())["rows"] if kept.is_file() else []
    for part, measure in parts.items():
        if part in words or not (words or part == "ray"):
            found = [{**row, "part": part} for row in measure()]
            rows = [*(row for row in rows if row["part"] != part), *found]
            record("medclm_build", rows)


if __name__ == "__main__":
    main()

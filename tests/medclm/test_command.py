"""The commands as a user types them: bad input named by file and row, nothing dropped, exit codes, resume after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.medclm.samples import source
from tests.medclm.texts.test_chat import Server
from tests.report.browser import wait
from trimtab.cli import main
from trimtab.cli.medclm.build import BuildArguments
from trimtab.medclm.building import BuildOptions, DataSetFolder
from trimtab.medclm.building.options import BuildSettings


def _build(options: Any, out: Path, *more: str) -> int:
    organs = options.organs[0][1]["folder"]
    words = ["--detections", options.detections, "--images", options.images, "--organs", organs, "--out", out]
    return main(["medclm", "build", *map(str, words), "--anatomy", "chest", "--workers", "1", "--quiet", *more])


def _rejected(out: Path) -> set[tuple[str, str, str]]:
    return {(one.file, one.row, one.reason) for one in DataSetFolder(out).rejected()}


def _box(*corners: Any) -> Any:
    def change(document: Any, folder: Path) -> None:
        document["annotations"][0]["bbox"] = list(corners)

    return change


def _entry(**changes: Any) -> Any:
    def change(document: Any, folder: Path) -> None:
        document["images"][1].update(changes)

    return change


def _unreadable(document: Any, folder: Path) -> None:
    (folder / "images" / "001.png").write_bytes(b"no picture")


def _missing(document: Any, folder: Path) -> None:
    (folder / "images" / "001.png").unlink()


def _twice(document: Any, folder: Path) -> None:
    document["annotations"].append({**document["annotations"][0], "id": 99})


def _nameless(document: Any, folder: Path) -> None:
    document["annotations"][0]["category_id"] = 99


def _other_run_lengths(document: Any, folder: Path) -> None:
    document["annotations"][0]["segmentation"] = {"size": [7, 7], "counts": [10, 5, 34]}


def _organ_missing(document: Any, folder: Path) -> None:
    (folder / "organs" / "001.json").unlink()


def _organ_of_other_size(document: Any, folder: Path) -> None:
    masks = folder / "organs" / "001.json"
    organs = json.loads(masks.read_text())
    masks.write_text(json.dumps({**organs, "size": [20, 20]}))


FAULTS = {
    "outside": (_box(100, 100, 5, 5), "annotation 1", "box lies outside the image"),
    "reaching out": (_box(30, 30, 40, 5), "annotation 1", "box reaches beyond the image"),
    "no area": (_box(4, 4, 0, 5), "annotation 1", "box has no area"),
    "swapped": (_box(4, 4, -2, 5), "annotation 1", "box has swapped corners (negative width or height)"),
    "not a number": (_box(4, float("nan"), 3, 5), "annotation 1", "box has a corner that is not a number"),
    "size": (_entry(width=41), "image 1", "image has another size than stated"),
    "missing image": (_missing, "image 1", "image is missing"),
    "unreadable image": (_unreadable, "image 1", "image is unreadable"),
    "same box twice": (_twice, "annotation 99", "same box and class as an earlier row of this image"),
    "nameless class": (_nameless, "annotation 1", "annotation of a category without name"),
    "run lengths": (_other_run_lengths, "annotation 1", "mask does not fit its image"),
    "traversal": (_entry(file_name="../set.json"), "image 1", "file name leaves the image folder"),
    "organ file": (_organ_missing, "", "organ file is missing"),
    "organ size": (_organ_of_other_size, "", "organ file is unreadable"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_bad_input_is_named_by_file_and_row_and_fails_only_when_asked(name, tmp_path, capsys):
    change, row, reason = FAULTS[name]
    options = source(tmp_path / "source", images=6)
    document = json.loads(options.detections.read_text())
    change(document, tmp_path / "source")
    options.detections.write_text(json.dumps(document))
    assert _build(options, tmp_path / "out") == 0
    found = _rejected(tmp_path / "out")
    assert {(Path(file).name, at) for file, at, why in found if why == reason} == {
        ("set.json" if row else "001.json", row)
    }, found
    statistics = json.loads((tmp_path / "out" / "statistics.json").read_text())
    assert statistics["rejected by reason"][reason] == 1
    read = sum(len(record.lesions) for record in DataSetFolder(tmp_path / "out").records())
    lost = {at for _, at, _ in found if at.startswith("annotation")}
    ids = {f"annotation {one['id']}" for one in document["annotations"]}
    assert read + len(lost) == len(ids)  # every box is read or reported
    assert _build(options, tmp_path / "out", "--strict") == 1
    assert main(["medclm", "check", str(tmp_path / "out"), "--quiet"]) == 0


def test_nothing_usable_and_an_empty_set_fail(tmp_path, capsys):
    options = source(tmp_path / "source", images=3)
    for picture in options.images.iterdir():
        picture.write_bytes(b"")
    assert _build(options, tmp_path / "out") == 2
    assert "nothing usable is left" in capsys.readouterr().err
    options.detections.write_text('{"images": [], "annotations": [], "categories": []}')
    assert _build(options, tmp_path / "empty") == 2
    assert "set.json lists no images" in capsys.readouterr().err
    options.detections.write_bytes(b'{"images": "\xff"}')
    assert _build(options, tmp_path / "latin") == 2
    assert "set.json: line 1 is not UTF-8" in capsys.readouterr().err


def test_voc_entities_are_refused_by_name(tmp_path):
    folder = tmp_path / "xml"
    folder.mkdir()
    (tmp_path / "images").mkdir()
    for name in ("a", "b"):
        Image.new("L", (50, 40)).save(tmp_path / "images" / f"{name}.png")
        box = "<object><name>nodule</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
        size = "<size><width>50</width><height>40</height></size>"
        body = f"<annotation><filename>{name}.png</filename>{size}{box}</annotation>"
        bomb = '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]>' if name == "b" else ""
        (folder / f"{name}.xml").write_text(bomb + body)
    words = ["--detections", folder, "--format", "voc", "--images", tmp_path / "images", "--out", tmp_path / "out"]
    assert main(["medclm", "build", *map(str, words), "--workers", "1", "--quiet"]) == 0
    assert _rejected(tmp_path / "out") == {("b.xml", "", "xml with a DTD or entities is refused")}


def test_unreadable_dicoms_are_named(tmp_path):
    pytest.importorskip("pydicom")
    (tmp_path / "images").mkdir()
    Image.new("L", (50, 40)).save(tmp_path / "images" / "a.png")
    (tmp_path / "images" / "b.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"torn")
    document = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 50, "height": 40},
            {"id": 2, "file_name": "b.dcm", "width": 50, "height": 40},
        ],
        "categories": [{"id": 1, "name": "nodule"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [3, 3, 9, 9]}],
    }
    (tmp_path / "set.json").write_text(json.dumps(document))
    words = ["--detections", tmp_path / "set.json", "--images", tmp_path / "images", "--out", tmp_path / "out"]
    assert main(["medclm", "build", *map(str, words), "--workers", "1", "--quiet"]) == 0
    assert _rejected(tmp_path / "out") == {("set.json", "image 2", "image is unreadable")}


def test_a_source_that_changes_under_resume_is_refused(tmp_path, capsys, monkeypatch):
    options = source(tmp_path / "source")

    def stopped(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["trimtab.medclm.building.build"], "write_rows", stopped)
    assert _build(options, tmp_path / "out") == 130
    assert "run the same command again to go on" in capsys.readouterr().err
    monkeypatch.undo()
    Image.new("L", (40, 40)).save(options.images / "002.png")
    assert _build(options, tmp_path / "out") == 2
    assert "images changed since the build began" in capsys.readouterr().err
    assert main(["medclm", "check", str(tmp_path / "out")]) == 2
    assert "the build did not finish" in capsys.readouterr().err


def test_every_command_says_what_it_did_as_json(tmp_path, capsys):
    options = source(tmp_path / "source")
    assert _build(options, tmp_path / "out", "--json") == 0
    built = json.loads(capsys.readouterr().out)
    assert built["images"] == 12
    out = str(tmp_path / "out")
    for words in (["check", out], ["view", out], ["export", out, "--to", "llava"], ["export", out, "--to", "coco"]):
        assert main(["medclm", *words, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found.get("rows", built["rows"]) == built["rows"]
        assert all(Path(found[key]).is_file() for key in ("page", "train") if key in found)
    assert main(["medclm", "export", out, "--to", "kosmos"]) == 2
    (tmp_path / "out" / "rows.jsonl").write_text("")
    assert main(["medclm", "check", out, "--quiet"]) == 1


@pytest.mark.slow
def test_the_demo_draws_builds_checks_and_shows(tmp_path, capsys):
    words = ["--images", "8", "--size", "128", "--workers", "1", "--no-train", "--quiet"]
    assert main(["medclm", "demo", "--out", str(tmp_path / "demo"), *words]) == 0
    assert main(["medclm", "check", str(tmp_path / "demo" / "set"), "--decode", "--quiet"]) == 0
    assert (tmp_path / "demo" / "set" / "view.html").is_file()


@pytest.mark.slow
def test_the_demo_ends_with_a_model_that_looks(tmp_path, capsys):
    pytest.importorskip("trl")
    assert main(["medclm", "demo", "--out", str(tmp_path / "demo")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "The model looks:" in printed
    systems = json.loads((tmp_path / "demo" / "run" / "evaluation.json").read_text())["systems"]
    closed = {
        name: next(row["value"] for row in one["rows"] if (row["group"], row["rule"]) == ("all", "closed.1"))
        for name, one in systems.items()
    }
    assert closed["model"] > max(closed["text only"], closed["majority"])


@pytest.mark.slow
def test_a_chat_build_killed_outright_pays_no_reply_twice(tmp_path):
    options = source(tmp_path / "source", images=6)
    server = Server()
    server.delay = 0.05
    organs = options.organs[0][1]["folder"]
    words = [
        "--detections",
        options.detections,
        "--images",
        options.images,
        "--organs",
        organs,
        "--out",
        tmp_path / "out",
    ]
    chat = ["--generator", "chat", "--chat.model", "tiny", "--chat.base-url", server.url, "--chat.concurrency", "1"]
    command = [sys.executable, "-m", "trimtab", "medclm", "build", *map(str, words), "--workers", "1", "--quiet", *chat]
    environment = {**os.environ, "OPENAI_API_KEY": "key"}
    running = subprocess.Popen(command, env=environment)
    wait(lambda: len(server.bodies) >= 7, "seven requests")
    running.send_signal(signal.SIGKILL)
    running.wait()
    before = len(server.bodies)
    assert subprocess.run(command, env=environment, check=False).returncode == 0
    asked = Counter(json.dumps(body, sort_keys=True) for body in server.bodies)
    assert len(server.bodies) > before
    assert asked.total() - len(asked) <= 1  # only the request that was under way may be asked again
    rows = list(DataSetFolder(tmp_path / "out").rows())
    assert all(row.question.startswith("Well, ") for row, _ in rows)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--organ-format", "coco"),
            "organ source coco needs file, organs: give --organs PATH and --organ-options organs=",
        ),
        (("--organ-format", "coco", "--organs", "set.json"), "organ source coco needs organs"),
    ],
)
def test_an_organ_source_without_what_it_needs_is_one_line(flags, message, tmp_path, capsys):
    options = source(tmp_path / "source", images=3)
    given = ["--detections", str(options.detections), "--format", "coco", "--images", str(options.images)]
    assert main(["medclm", "build", *given, *flags, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.split())
    assert "Traceback" not in error


def test_every_option_of_a_build_has_its_flag_and_only_one():
    own = {field.name for field in fields(BuildArguments)}
    assert not own & set(BuildSettings.model_fields)
    by_other_names = {"preset": "anatomy", "allowed": "host_in"}
    beyond = set(BuildOptions.model_fields) - set(BuildSettings.model_fields)
    assert {by_other_names.get(name, name) for name in beyond} <= own


def test_a_trusted_size_that_is_wrong_is_found_when_the_picture_is_opened(tmp_path, capsys):
    options = source(tmp_path / "source", images=6)
    document = json.loads(options.detections.read_text())
    document["images"][1].update(width=41)
    options.detections.write_text(json.dumps(document))
    (options.images / document["images"][2]["file_name"]).unlink()
    outside = tmp_path / "outside.png"
    name = document["images"][3]["file_name"]
    (options.images / name).rename(outside)
    (options.images / name).symlink_to(outside)
    assert _build(options, tmp_path / "out", "--trust-sizes") == 0
    reasons = {reason for _, _, reason in _rejected(tmp_path / "out")}
    assert {"image has another size", "image is unreadable", "file name leaves the image folder"} <= reasons
    assert main(["medclm", "check", str(tmp_path / "out"), "--quiet"]) == 0
    assert _build(options, tmp_path / "other", "--trust-sizes", "--format", "yolo") == 2
    assert "files of the format yolo state no sizes" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()

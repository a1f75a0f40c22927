from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.medclm.pictures import parted, picture
from trimtab.medclm import readers

XML = """<annotation><filename>{name}</filename><size><width>100</width><height>80</height></size>
<object><name>{label}</name><difficult>1</difficult><bndbox>{box}</bndbox></object></annotation>"""
BOX = "<xmin>11</xmin><ymin>21</ymin><xmax>60</xmax><ymax>60</ymax>"


def voc(folder: Path, text: str | bytes, name: str = "a.xml", **options: object):
    picture(folder / "images" / "a.png")
    path = folder / "xml" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return parted(readers.create("voc", **options).read(folder / "xml", folder / "images"))


def test_voc_counts_pixels_from_one_and_includes_the_last(tmp_path: Path) -> None:
    records, rejected = voc(tmp_path, XML.format(name="a.png", label="mass", box=BOX))
    assert not rejected
    (lesion,) = records[0].lesions
    assert lesion.box.corners == (0.1, 0.25, 0.6, 0.75)
    assert (lesion.label, lesion.flags, lesion.source_row) == ("mass", ("difficult",), "a.xml:object 1")
    assert records[0].source == "xml"
    records, _ = voc(tmp_path, XML.format(name="a.png", label="mass", box=BOX), first_pixel=0)
    assert records[0].lesions[0].box.corners == (0.11, 0.2625, 0.6, 0.75)


ENTITY = '<!DOCTYPE a [<!ENTITY x "boom">]><annotation><filename>&x;</filename></annotation>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><filename>&x;</filename></annotation>'


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ENTITY, "xml with a DTD or entities is refused"),
        (EXTERNAL, "xml with a DTD or entities is refused"),
        ("<annotation><filename>a.png", "xml is unreadable"),
        (
            b'<?xml version="1.0" encoding="utf-8"?><annotation><filename>\xff</filename></annotation>',
            "xml is unreadable",
        ),
        ("<annotation></annotation>", "xml without filename"),
        (
            "<annotation><filename>a.png</filename><size><width>Infinity</width><height>80</height></size></annotation>",
            "xml whose width and height are no whole numbers above 0",
        ),
        (XML.format(name="../a.png", label="mass", box=BOX), "file name leaves the image folder"),
        (XML.format(name="a.png", label="", box=BOX), "object without name"),
        (XML.format(name="a.png", label="mass", box="<xmin>1</xmin>"), "box has a corner that is not a number"),
        (
            XML.replace("<height>80", "<height>81").format(name="a.png", label="m", box=BOX),
            "image has another size than stated",
        ),
    ],
)
def test_every_bad_xml_is_reported(tmp_path: Path, text: str | bytes, reason: str) -> None:
    records, rejected = voc(tmp_path, text)
    assert not records
    assert rejected[0].reason == reason
    assert rejected[0].file == "a.xml"


def test_two_files_for_one_image_and_an_empty_folder(tmp_path: Path) -> None:
    text = XML.format(name="a.png", label="mass", box=BOX)
    voc(tmp_path, text)
    records, rejected = voc(tmp_path, text, name="b.xml")
    assert not records, "neither file is known to be the right one"
    assert [(row.file, row.reason) for row in rejected] == [
        ("a.xml", "image occurs twice"),
        ("b.xml", "image occurs twice"),
    ]
    (tmp_path / "xml" / "b.xml").write_text(text.replace("a.png", "none.png"))
    _, rejected = parted(readers.create("voc").read(tmp_path / "xml", tmp_path / "images"))
    assert (rejected[0].file, rejected[0].reason) == ("b.xml", "image is missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no \.xml"):
        parted(readers.create("voc").read(tmp_path / "empty", tmp_path))


def test_the_blood_cells_voc_files_give_the_boxes_of_their_coco_file(tmp_path: Path, shared_data: Path) -> None:
    with zipfile.ZipFile(shared_data / "bccd_blood_cells" / "bccd_voc.zip") as archive:
        archive.extractall(tmp_path)
    records, rejected = parted(
        readers.create("voc", first_pixel=0).read(tmp_path / "Annotations", tmp_path / "JPEGImages")
    )
    assert [row.reason for row in rejected] == ["box has no area"] * 2
    document = json.loads((tmp_path / "annotations_coco.json").read_text())
    names = {entry["id"]: Path(entry["file_name"]).stem for entry in document["images"]}
    kinds = {entry["id"]: entry["name"] for entry in document["categories"]}
    theirs = sorted(
        (names[entry["image_id"]], kinds[entry["category_id"]], *entry["bbox"]) for entry in document["annotations"]
    )
    ours = sorted(
        (record.image_id, lesion.label, x0, y0, x1 - x0, y1 - y0)
        for record in records
        for lesion in record.lesions
        for x0, y0, x1, y1 in [lesion.box.pixels(record.width, record.height)]
    )
    assert len(records) == 364
    missing = len(theirs) - len(ours)
    assert missing == sum(row.reason.startswith("same box") for row in rejected)
    assert ours == theirs


def yolo(folder: Path, text: str | bytes | None, **options: object):
    picture(folder / "images" / "a.png")
    (folder / "labels").mkdir(exist_ok=True)
    if text is not None:
        (folder / "labels" / "a.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    options = {"classes": ("nodule", "mass"), **options}
    return parted(readers.create("yolo", **options).read(folder / "labels", folder / "images"))


def test_yolo_boxes_and_outlines(tmp_path: Path) -> None:
    records, rejected = yolo(tmp_path, "1 0.35 0.5 0.5 0.5\n\n0 0.1 0.2 0.5 0.2 0.3 0.6\n")
    assert not rejected
    first, second = records[0].lesions
    assert first.label == "mass"
    assert np.allclose(first.box.corners, (0.1, 0.25, 0.6, 0.75))
    assert np.allclose(second.box.corners, (0.1, 0.2, 0.5, 0.6))
    assert second.source_row == "a.txt:line 3"


@pytest.mark.parametrize("text", [None, "", "\n"])
def test_yolo_images_without_lines_are_negatives(tmp_path: Path, text: str | None) -> None:
    records, rejected = yolo(tmp_path, text)
    assert not rejected
    assert records[0].lesions == ()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2 0.5 0.5 0.1 0.1", "class number is not one of 0 to 1"),
        ("x 0.5 0.5 0.1 0.1", "class number is not one of 0 to 1"),
        ("0 0.5 0.5 0.1", "line is not a class number and 4 numbers, or an outline of 3 points or more"),
        ("0 0.5 0.5 nan 0.1", "box has a corner that is not a number"),
        ("0 0.5 0.5 0 0.1", "box has no area"),
        ("0 0.5 0.5 1.2 0.1", "box reaches beyond the image"),
        (b"0 \xff", "file is not UTF-8"),
    ],
)
def test_every_bad_yolo_line_is_reported(tmp_path: Path, text: str | bytes, reason: str) -> None:
    records, rejected = yolo(tmp_path, text)
    assert not records
    assert rejected[0].reason == reason


def test_a_txt_without_image_is_reported(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "b.txt").write_text("0 0.5 0.5 0.1 0.1")
    _, rejected = yolo(tmp_path, "0 0.5 0.5 0.1 0.1")
    assert [(row.file, row.reason) for row in rejected] == [("b.txt", "image is missing")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("classes.txt", "nodule\nmass\n"),
        ("data.yaml", "names: [nodule, mass]"),
        ("data.yaml", "names: {0: nodule, 1: mass}"),
    ],
)
def test_yolo_finds_its_class_names(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    records, _ = yolo(tmp_path, "1 0.5 0.5 0.1 0.1", classes=())
    assert records[0].lesions[0].label == "mass"


def test_yolo_without_class_names_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"give classes, or put classes\.txt"):
        yolo(tmp_path, "0 0.5 0.5 0.1 0.1", classes=())
    (tmp_path / "data.yaml").write_text("names: 3")
    with pytest.raises(ValueError, match="names must list the classes"):
        yolo(tmp_path, "0 0.5 0.5 0.1 0.1", classes=())


@pytest.mark.slow
def test_supervision_reads_the_same_voc_and_yolo_boxes(tmp_path: Path) -> None:
    import supervision

    generator = np.random.default_rng(0)
    classes = ("nodule", "mass")
    (tmp_path / "data.yaml").write_text("names: [nodule, mass]")
    for number in range(4):
        picture(tmp_path / "images" / f"{number}.png")
        corners = np.sort(generator.integers(1, 80, (3, 2, 2)), axis=1)
        corners[:, 1] += 1
        objects, lines = "", ""
        for (x0, y0), (x1, y1) in corners:
            label = int(generator.integers(2))
            objects += f"<object><name>{classes[label]}</name><bndbox><xmin>{x0}</xmin><ymin>{y0}</ymin>"
            objects += f"<xmax>{x1}</xmax><ymax>{y1}</ymax></bndbox></object>"
            lines += f"{label} {(x0 + x1) / 200} {(y0 + y1) / 160} {(x1 - x0) / 100} {(y1 - y0) / 80}\n"
        head = f"<annotation><filename>{number}.png</filename><size><width>100</width><height>80</height></size>"
        for kind, text in (("xml", f"{head}{objects}</annotation>"), ("txt", lines)):
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{number}.{kind}").write_text(text)
    images = str(tmp_path / "images")
    loaded = {
        "voc": supervision.DetectionDataset.from_pascal_voc(images, str(tmp_path / "xml")),
        "yolo": supervision.DetectionDataset.from_yolo(images, str(tmp_path / "txt"), str(tmp_path / "data.yaml")),
    }
    ours = {
        "voc": parted(readers.create("voc").read(tmp_path / "xml", tmp_path / "images"))[0],
        "yolo": parted(readers.create("yolo").read(tmp_path / "txt", tmp_path / "images"))[0],
    }
    for kind, theirs in loaded.items():
        for path, _, detections in theirs:
            record = next(record for record in ours[kind] if record.file == Path(path).name)
            boxes = np.array([lesion.box.corners for lesion in record.lesions]) * (100, 80, 100, 80)
            assert np.allclose(boxes, detections.xyxy, atol=1e-3)
            assert [lesion.label for lesion in record.lesions] == [theirs.classes[n] for n in detections.class_id]

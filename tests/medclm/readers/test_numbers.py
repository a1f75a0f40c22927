"""Numbers that no annotation file should hold: each is a rejected row, none ends the set or the interpreter."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.medclm.pictures import coco, image_record, parted, picture
from tests.medclm.test_pixels import dicom_file
from trimtab.medclm import readers
from trimtab.medclm.coco import run_lengths
from trimtab.medclm.organs.rle import CocoOrgans, OrganError

BAD = [float("nan"), float("inf"), 1e308, 1e9, 10**30, -(2**63), None, True, "x", "4 4", "1_0", [4], {}, ""]
POLYGON = [10, 20, 60, 20, 60, 60, 10, 60]
MASK = {"size": [80, 100], "counts": [820, 40, 7140]}
ROW = {"id": 1, "image_id": 1, "category_id": 1}
MASKS = [
    *([[*POLYGON[:4], value, *POLYGON[5:]]] for value in BAD),
    [POLYGON[:7]], [POLYGON[:4]], [[]], [], [POLYGON, 5], "text",
    *({**MASK, "counts": counts} for counts in BAD),
    *({**MASK, "counts": [820, value, 7140]} for value in BAD),
    *({**MASK, "size": value} for value in BAD),
    *({**MASK, "size": [80, value]} for value in BAD),
    {**MASK, "counts": [2**40, 8000 - 2**40]}, {**MASK, "counts": [10.5, 7989.5]}, {**MASK, "counts": "o" * 100_000},
    {"counts": [8000]}, {"size": [80, 100]},
]  # fmt: skip


def read_all_masks(folder: Path) -> None:
    """Run in a child process, since what pycocotools cannot bear ends the interpreter."""
    for mask in MASKS:
        for box in ({}, {"bbox": [10, 20, 50, 40]}):
            path = coco(folder, [], annotations=[{**ROW, **box, "segmentation": mask}])
            records, rejected = parted(readers.create("coco").read(path, folder / "images"))
            assert box or (rejected and not records), mask
            boxes = [lesion.box.corners for record in records for lesion in record.lesions]
            assert boxes in ([], [(0.1, 0.25, 0.6, 0.75)]), mask
        with contextlib.suppress(OrganError):
            CocoOrgans(path, ["nodule"]).masks(image_record(), None)
    print("all", len(MASKS))


def test_no_mask_of_bad_numbers_ends_the_interpreter_or_gives_a_box(tmp_path: Path) -> None:
    child = "import sys, pathlib, tests.medclm.readers.test_numbers as it; it.read_all_masks(pathlib.Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", child, str(tmp_path)],
        capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, f"all {len(MASKS)}\n"), done.stderr[-2000:]


def test_good_masks_stay_as_they_are() -> None:
    from pycocotools import mask as masks

    pixels = np.zeros((80, 100), dtype=np.uint8)
    pixels[20:60, 10:60] = 1
    assert np.array_equal(masks.decode(run_lengths([POLYGON], 80, 100)), pixels)
    assert masks.decode(run_lengths(MASK, 80, 100)).sum() == 40


def test_a_polygon_of_endless_length_is_refused() -> None:
    with pytest.raises(ValueError, match="pixels long"):
        run_lengths([[0, 0, 8, 8] * 100], 8, 8)


@pytest.mark.parametrize("place", ["id", "image_id", "category_id", "bbox", "iscrowd", "segmentation"])
def test_bad_values_of_an_annotation_never_end_the_set(tmp_path: Path, place: str) -> None:
    images = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in (1, 2)]
    for number in (1, 2):
        picture(tmp_path / "images" / f"{number}.png")
    good = {**ROW, "id": 2, "image_id": 2, "bbox": [1, 1, 9, 9]}
    for value in BAD:
        row = {**ROW, "bbox": [10, 20, 50, 40], place: value}
        path = coco(tmp_path, [], annotations=[good, row], images=images)
        records, rejected = parted(readers.create("coco").read(path, tmp_path / "images"))
        assert [record.image_id for record in records if record.lesions and record.image_id == "2"] == ["2"], value
        first = [record for record in records if record.image_id == "1"]
        assert all(lesion.box.corners == (0.1, 0.25, 0.6, 0.75) for record in first for lesion in record.lesions)
        assert all(record.lesions for record in first) or any(row.reason.endswith("not listed") for row in rejected), (
            value
        )


@pytest.mark.parametrize("place", ["id", "file_name", "width", "height", "split", "patient"])
def test_bad_values_of_an_image_entry_never_end_the_set(tmp_path: Path, place: str) -> None:
    picture(tmp_path / "images" / "2.png")
    for value in BAD:
        images = [
            {"id": 1, "file_name": "a.png", "width": 100, "height": 80, place: value},
            {"id": 2, "file_name": "2.png", "width": 100, "height": 80},
        ]
        rows = [{**ROW, "bbox": [10, 20, 50, 40]}, {**ROW, "id": 2, "image_id": 2, "bbox": [1, 1, 9, 9]}]
        path = coco(tmp_path, [], annotations=rows, images=images)
        records, _ = parted(readers.create("coco").read(path, tmp_path / "images"))
        assert [len(record.lesions) for record in records if record.image_id == "2"] == [1], value
        # another id that is one makes another image, and a list that never had image 1
        assert place == "id" or all(record.lesions for record in records), value


def test_bad_categories_never_end_the_set(tmp_path: Path) -> None:
    for value in BAD:
        kinds = [{"id": 1, "name": "nodule"}, {"id": value, "name": "mass"}, {"id": 7, "name": value}, value]
        path = coco(tmp_path, [[10, 20, 50, 40]], categories=kinds)
        records, _ = parted(readers.create("coco").read(path, tmp_path / "images"))
        assert [lesion.label for lesion in records[0].lesions] == ["nodule"]


NUMBERS = ["nan", "inf", "-inf", "Infinity", "1e308", "1e999", "9" * 400, "1_0", "x", "\u0661", ""]
TABLES = {
    "vindr": "image_id,class_name,rad_id,width,height,x_min,y_min,x_max,y_max\n"
    "b,mass,R,100,80,1,1,9,9\na,mass,R,100,80,10,20,60,60\n",
    "rsna": "patientId,x,y,width,height,Target\nb,1,1,9,9,1\na,10,20,50,40,1\n",
    "nih": "Image Index,Finding Label,x,y,w,h\nb.png,Mass,1,1,9,9\na.png,Mass,102.4,256,512,512\n",
    "dicom": "image,label,x_min,y_min,x_max,y_max\nb.dcm,mass,1,1,9,9\na.dcm,mass,10,20,60,60\n",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_bad_numbers_in_tables_never_end_the_set(tmp_path: Path, name: str) -> None:
    for file in ("a", "b"):
        picture(tmp_path / "images" / f"{file}.png")
        dicom_file(
            tmp_path / "images" / f"{file}.dcm", np.zeros((80, 100), dtype=np.int16)
        ) if name == "dicom" else None
    if name == "dicom":
        for file in ("a", "b"):
            (tmp_path / "images" / f"{file}.png").unlink()
    head, good, last = TABLES[name].splitlines()
    fields = last.split(",")
    table = tmp_path / "table.csv"
    for place in range(2, len(fields)):
        for value in NUMBERS:
            table.write_text("\n".join([head, good, ",".join([*fields[:place], value, *fields[place + 1 :]])]) + "\n")
            records, _ = parted(readers.create(name).read(table, tmp_path / "images"))
            assert len([record for record in records if record.image_id.startswith("b")]) == 1, (place, value)
            assert all(record.lesions for record in records), (place, value)


def test_bad_numbers_in_voc_and_yolo_never_end_the_set(tmp_path: Path) -> None:
    for file in ("a", "b"):
        picture(tmp_path / "images" / f"{file}.png")
    for folder in ("xml", "txt"):
        (tmp_path / folder).mkdir()
    xml = (
        "<annotation><filename>{0}.png</filename><size><width>{1}</width><height>{2}</height></size><object><name>mass</name>"
        "<bndbox><xmin>{3}</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object></annotation>"
    )
    (tmp_path / "xml" / "b.xml").write_text(xml.format("b", 100, 80, 1))
    (tmp_path / "txt" / "b.txt").write_text("0 0.5 0.5 0.1 0.1")
    for value in NUMBERS:
        for given in ((value, 80, 1), (100, value, 1), (100, 80, value)):
            (tmp_path / "xml" / "a.xml").write_text(xml.format("a", *given))
            records, _ = parted(readers.create("voc").read(tmp_path / "xml", tmp_path / "images"))
            assert [record.image_id for record in records if record.lesions][-1] == "b"
            assert all(record.lesions for record in records)
        for line in (f"{value} 0.5 0.5 0.1 0.1", f"0 0.5 {value} 0.1 0.1", f"0 0.1 0.1 0.2 {value} 0.3 0.3"):
            if len(line.split()) in (5, 7):
                (tmp_path / "txt" / "a.txt").write_text(line)
                made = readers.create("yolo", classes=("mass",)).read(tmp_path / "txt", tmp_path / "images")
                assert [record.image_id for record in parted(made)[0]] == ["b"], line


@pytest.mark.filterwarnings("ignore")
def test_damaged_entries_of_a_dicom_header_never_end_the_set(tmp_path: Path) -> None:
    images = tmp_path / "images"
    pixels = np.zeros((80, 100), dtype=np.int16)
    dicom_file(images / "b.dcm", pixels)
    table = tmp_path / "table.csv"
    table.write_text("image,label,x_min,y_min,x_max,y_max\nb.dcm,mass,1,1,9,9\na.dcm,mass,10,20,60,60\n")
    whole = dicom_file(images / "a.dcm", pixels, PatientID="P1", Modality="CT").read_bytes()
    start = whole.index(b"\x08\x00\x16\x00")
    generator = np.random.default_rng(0)
    for _ in range(150):
        raw = bytearray(whole)
        at = int(generator.integers(start, whole.index(b"\xe0\x7f\x10\x00")))
        raw[at] ^= 1 << int(generator.integers(8))
        (images / "a.dcm").write_bytes(bytes(raw))
        records, _ = parted(readers.create("dicom").read(table, images))
        assert "b" in [record.image_id for record in records], at
        assert all(record.lesions for record in records)
        json.dumps([record.model_dump() for record in records])


def test_the_files_own_size_counts_and_not_the_declared_one(tmp_path: Path) -> None:
    for width in (10**30, 2**31, 65536, True):
        images = [{"id": 1, "file_name": "a.png", "width": width, "height": 65536}]
        path = coco(tmp_path, [], annotations=[{**ROW, "segmentation": [POLYGON]}], images=images)
        records, rejected = parted(readers.create("coco").read(path, tmp_path / "images"))
        assert not records
        assert rejected[0].reason in (
            "image has another size than stated",
            "image entry whose width and height are no whole numbers above 0",
        )

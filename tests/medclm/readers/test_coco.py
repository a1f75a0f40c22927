from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.medclm.pictures import coco, parted, picture
from trimtab.medclm import readers
from trimtab.medclm.coco import encode
from trimtab.medclm.pixels import picture_header
from trimtab.medclm.records import Rejected


def read(path: Path, **options: object):
    return parted(readers.create("coco", **options).read(path, path.parent / "images"))


def test_boxes_become_fractions_of_the_image(tmp_path: Path) -> None:
    records, rejected = read(coco(tmp_path, [[10, 20, 50, 40]]), modality="X-ray", source="demo")
    assert not rejected
    (lesion,) = records[0].lesions
    assert lesion.box.corners == (0.1, 0.25, 0.6, 0.75)
    assert (lesion.lesion_id, lesion.label, lesion.source_row) == ("1/1", "nodule", "set.json:annotation 1")
    assert (records[0].patient, records[0].modality, records[0].source) == ("1", "X-ray", "demo")


@pytest.mark.parametrize(
    ("box", "reason"),
    [
        ([120, 10, 20, 20], "box lies outside the image"),
        ([90, 10, 20, 20], "box reaches beyond the image"),
        ([10, 10, 0, 20], "box has no area"),
        ([10, 10, -5, 20], "box has swapped corners (negative width or height)"),
        ([10, float("nan"), 5, 20], "box has a corner that is not a number"),
        ([10, "ten", 5, 20], "box has a corner that is not a number"),
        ([10, 10, 5], "bbox is not four numbers"),
    ],
)
def test_every_bad_box_is_reported_with_its_row_and_the_image_is_no_negative(
    tmp_path: Path, box: list[float], reason: str
) -> None:
    records, rejected = read(coco(tmp_path, [box]))
    assert next((row.file, row.row, row.reason) for row in rejected) == ("set.json", "annotation 1", reason)
    assert not records, "an image whose only box is bad must not become a negative"
    assert rejected[-1].reason == "no usable box is left, so the image is no negative"


def test_an_image_that_lost_one_of_its_boxes_is_marked_incomplete(tmp_path: Path) -> None:
    records, rejected = read(coco(tmp_path, [[10, 10, 5, 5], [10, 10, 0, 5]]))
    assert len(rejected) == 1
    assert [lesion.flags for lesion in records[0].lesions] == [("incomplete_image",)]


def test_a_pixel_beyond_the_edge_is_rounding_and_more_is_cut_only_when_asked(tmp_path: Path) -> None:
    records, _ = read(coco(tmp_path, [[90, 10, 10.7, 20]]))
    assert records[0].lesions[0].box.x1 == 1.0
    assert records[0].lesions[0].flags == ("box_clipped",)
    records, rejected = read(coco(tmp_path, [[90, 10, 30, 20]]), clip=True)
    assert not rejected
    assert records[0].lesions[0].box.x1 == 1.0


def test_images_without_annotations_are_negatives(tmp_path: Path) -> None:
    records, rejected = read(coco(tmp_path, []))
    assert not rejected
    assert records[0].lesions == ()


IMAGE = {"id": 1, "file_name": "a.png", "width": 100, "height": 80}
GOOD = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": [IMAGE, {**IMAGE, "file_name": "b.png"}]}, "image id occurs twice"),
        ({"images": [{"id": 1, "width": 100, "height": 80}, {**IMAGE, "id": 2}]}, "image entry without file_name"),
        (
            {"images": [{**IMAGE, "width": -1}, {**IMAGE, "id": 2}]},
            "image entry whose width and height are no whole numbers above 0",
        ),
        ({"images": [{**IMAGE, "height": 90}]}, "image has another size than stated"),
        ({"images": [{**IMAGE, "file_name": "none.png"}]}, "image is missing"),
        ({"images": [{**IMAGE, "file_name": "../images/a.png"}]}, "file name leaves the image folder"),
        ({"images": [{**IMAGE, "file_name": "/etc/passwd"}]}, "file name leaves the image folder"),
        ({"images": [{**IMAGE, "split": "holdout"}]}, "split has an unknown name"),
        ({"categories": [{"id": 1, "name": " "}, {"id": 2, "name": "mass"}]}, "category without id or name"),
        ({"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}, "category id occurs twice"),
        ({"annotations": [GOOD, {**GOOD, "id": 2}]}, "same box and class as an earlier row of this image"),
        ({"annotations": [{**GOOD, "category_id": 9}]}, "annotation of a category without name"),
        ({"annotations": [GOOD, {**GOOD, "image_id": 9}]}, "annotation of an image that is not listed"),
        ({"annotations": [{"id": 1, "image_id": 1, "category_id": 1}]}, "annotation without bbox and mask"),
        ({"annotations": [{"id": 1}]}, "annotation without image_id"),
        ({"annotations": [7]}, "annotation is no object"),
        (
            {"annotations": [{**GOOD, "segmentation": {"size": [100, 80], "counts": [8000]}}]},
            "mask does not fit its image",
        ),
    ],
)
def test_every_bad_row_is_reported(tmp_path: Path, changes: dict[str, object], reason: str) -> None:
    _, rejected = read(coco(tmp_path, [[1, 1, 5, 5]], **changes))
    assert reason in [row.reason for row in rejected]
    assert all(row.row for row in rejected)


def test_a_bad_category_never_makes_its_image_a_negative(tmp_path: Path) -> None:
    records, rejected = read(coco(tmp_path, [], annotations=[{**GOOD, "category_id": 9}]))
    assert not records
    assert len(rejected) == 2


def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path) -> None:
    outside = picture(tmp_path / "outside.png")
    path = coco(tmp_path, [[1, 1, 5, 5]], images=[{**IMAGE, "file_name": "link.png"}])
    (tmp_path / "images" / "link.png").symlink_to(outside)
    _, rejected = read(path)
    assert rejected[0].reason == "file name leaves the image folder"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"{", "is not json"),
        (b'{"images": [], "annotations": [], "categories": []}', "lists no images"),
        (b'{"images": [1], "annotations": []}', "no list 'categories'"),
        (b'{"images": [\n"\xff"]}', "line 2 is not UTF-8"),
        (b"[]", "no list 'images'"),
    ],
)
def test_a_file_that_cannot_be_used_at_all_is_an_error(tmp_path: Path, raw: bytes, message: str) -> None:
    path = coco(tmp_path, [])
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_masks_give_boxes_where_none_are_written(tmp_path: Path) -> None:
    mask = np.zeros((80, 100), dtype=bool)
    mask[20:60, 10:60] = True
    polygon = [[10, 20, 60, 20, 60, 60, 10, 60]]
    for segmentation in ({"size": [80, 100], "counts": encode(mask)}, polygon):
        annotation = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation, "iscrowd": 0}
        records, rejected = read(coco(tmp_path, [], annotations=[annotation]))
        assert not rejected
        assert records[0].lesions[0].box.corners == (0.1, 0.25, 0.6, 0.75)


def test_anatomy_renaming_patients_and_splits(tmp_path: Path) -> None:
    both = [GOOD, {**GOOD, "id": 2, "category_id": 2}]
    path = coco(tmp_path, [], annotations=both, images=[{**IMAGE, "split": "valid"}])
    records, _ = read(path, anatomy=("mass",), rename={"nodule": "spot"}, patients={"a": "P7"})
    assert [lesion.label for lesion in records[0].lesions] == ["spot"]
    assert (records[0].patient, records[0].split) == ("P7", "validation")
    assert read(path, patient_pattern=r"^(\w)\.")[0][0].patient == "a"
    with pytest.raises(ValueError, match="needs a group"):
        readers.create("coco", patient_pattern="x")


def test_pycocotools_reads_the_same_boxes(
    tmp_path: Path, shared_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import zipfile

    from pycocotools.coco import COCO

    with zipfile.ZipFile(shared_data / "fundus_idrid_codras" / "fundus_idrid_768.zip") as archive:
        archive.extractall(tmp_path)
    path = tmp_path / "annotations_coco.json"
    records, rejected = read(path, anatomy=("optic_disc",))
    oracle = COCO(str(path))
    capsys.readouterr()
    assert not rejected
    assert len(records) == 514
    ours = {
        (lesion.image_id, lesion.lesion_id.split("/")[1]): (lesion.label, lesion.box)
        for record in records
        for lesion in record.lesions
    }
    theirs = [entry for entry in oracle.anns.values() if entry["category_id"] != 1]
    assert len(ours) == len(theirs) == 3206
    for entry in theirs:
        label, box = ours[str(entry["image_id"]), str(entry["id"])]
        assert label == oracle.cats[entry["category_id"]]["name"]
        x, y, w, h = entry["bbox"]
        assert np.allclose(np.array(box.corners) * (768, 510, 768, 510), (x, y, x + w, y + h), atol=1.0)
    assert sum(not record.lesions for record in records) == 224


def test_unknown_readers_and_options_are_refused() -> None:
    with pytest.raises(ValueError, match="no reader is called 'cocoa'; there are coco, deeplesion"):
        readers.create("cocoa")
    with pytest.raises(ValueError, match="colour"):
        readers.create("coco", colour="red")


def test_every_reader_is_created_by_name() -> None:
    for name in readers.names():
        assert callable(readers.create(name).read)


def test_json_floats_that_json_does_not_know_are_rejected_rows(tmp_path: Path) -> None:
    path = coco(tmp_path, [[1, 1, 5, 5]])
    path.write_text(path.read_text().replace("[1, 1, 5, 5]", "[1, NaN, 5, Infinity]"))
    assert json.loads(path.read_text())
    _, rejected = read(path)
    assert rejected[0].reason == "box has a corner that is not a number"


def test_trusted_sizes_open_no_image_and_give_the_same_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = tmp_path / "images"
    for number in range(3):
        picture(images / f"{number}.png", 40, 30)
    entries = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in range(2)] + [
        {"id": 2, "file_name": "2.png"}
    ]
    boxes = [{"id": n + 1, "image_id": n, "category_id": 1, "bbox": [4 + n, 3, 8, 6]} for n in range(3)]
    file = tmp_path / "set.json"
    categories = [{"id": 1, "name": "mass"}]
    file.write_text(json.dumps({"images": entries, "annotations": boxes, "categories": categories}))
    checked = list(readers.create("coco").read(file, images))
    opened = []

    def header(path: Path) -> object:
        opened.append(path.name)
        return picture_header(path)

    monkeypatch.setattr("trimtab.medclm.readers.reading.picture_header", header)
    assert list(readers.create("coco", trust_sizes=True).read(file, images)) == checked
    assert opened == ["2.png"]  # its size is not stated
    (images / "0.png").unlink()
    assert len(list(readers.create("coco", trust_sizes=True).read(file, images))) == 3
    entries[0]["file_name"] = "../0.png"
    file.write_text(json.dumps({"images": entries, "annotations": boxes, "categories": categories}))
    first, *_ = readers.create("coco", trust_sizes=True).read(file, images)
    assert isinstance(first, Rejected)
    assert first.reason == "file name leaves the image folder"

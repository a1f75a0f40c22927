"""A row that was rejected never makes its image a negative, and one picture is one image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.medclm.pictures import coco, parted, picture
from trimtab.medclm import readers

IMAGES = [{"id": n, "file_name": f"{n}.png", "width": 100, "height": 80} for n in (1, 2, 3)]
BOX = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 50, 40]}


def read(folder: Path, annotations: list[Any], images: list[Any] = IMAGES, **options: object):
    for number in (1, 2, 3):
        picture(folder / "images" / f"{number}.png")
    path = coco(folder, [], annotations=annotations, images=images)
    return parted(readers.create("coco", **options).read(path, folder / "images"))


def test_annotation_ids_that_restart_in_every_image_keep_their_boxes(tmp_path: Path) -> None:
    records, rejected = read(tmp_path, [{**BOX, "image_id": n, "bbox": [10 * n, 20, 50, 40]} for n in (1, 2, 3)])
    assert not rejected
    assert [[lesion.box.x0 for lesion in record.lesions] for record in records] == [[0.1], [0.2], [0.3]]
    assert [lesion.flags for record in records for lesion in record.lesions] == [(), (), ()]
    sources = [lesion.source_row for record in records for lesion in record.lesions]
    assert sources == [f"set.json:annotations[{n}]" for n in range(3)]


@pytest.mark.parametrize("identities", [(0, 0), (None, None), ("x", "x")])
def test_annotation_ids_name_lesions_and_nothing_else(tmp_path: Path, identities: tuple[Any, Any]) -> None:
    rows = [{**BOX, "id": identities[0]}, {**BOX, "id": identities[1], "bbox": [1, 1, 9, 9]}]
    records, rejected = read(tmp_path, rows)
    assert not rejected
    assert len({lesion.lesion_id for lesion in records[0].lesions}) == 2


@pytest.mark.parametrize(
    ("image", "named"), [(1, "1"), ("1", 1), (1.0, 1), (1, 1.0), ("1", 1.0), (10**30, str(10**30))]
)
def test_ids_of_mixed_type_are_one_id(tmp_path: Path, image: Any, named: Any) -> None:
    images = [{**IMAGES[0], "id": image}]
    records, rejected = read(tmp_path, [{**BOX, "image_id": named, "category_id": 1.0}], images)
    assert not rejected
    assert records[0].lesions[0].box.corners == (0.1, 0.25, 0.6, 0.75)


def test_annotations_that_match_no_image_at_all_refuse_the_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not one of its 2 annotations names a listed image: image_id is 71, ids are"):
        read(tmp_path, [{**BOX, "image_id": 71}, {**BOX, "image_id": None}])


@pytest.mark.parametrize("owner", [None, [1], {}, float("nan"), True])
def test_an_annotation_without_owner_leaves_no_image_a_sure_negative(tmp_path: Path, owner: Any) -> None:
    records, rejected = read(tmp_path, [BOX, {**BOX, "image_id": owner}])
    assert [(record.image_id, record.lesions[0].flags) for record in records] == [("1", ("incomplete_image",))]
    assert sum(row.reason.startswith("annotations of the set name no image") for row in rejected) == 2


@pytest.mark.parametrize(
    "wrong", [{"category_id": [1]}, {"category_id": None}, {"bbox": 5}, {"bbox": None}, {"bbox": [1, 2, None, 4]}]
)
def test_a_rejected_annotation_takes_its_image_with_it(tmp_path: Path, wrong: dict[str, Any]) -> None:
    records, _ = read(tmp_path, [{**BOX, **wrong}, {**BOX, "image_id": 3}])
    assert [record.image_id for record in records] == ["2", "3"]


def test_the_boxes_of_a_rejected_entry_are_said_to_be_so(tmp_path: Path) -> None:
    images = [{**IMAGES[0], "width": -4}, IMAGES[1]]
    _, rejected = read(tmp_path, [BOX], images)
    assert [row.reason for row in rejected] == [
        "image entry whose width and height are no whole numbers above 0",
        "its image was rejected",
    ]


def test_one_file_under_two_ids_is_one_image(tmp_path: Path) -> None:
    images = [IMAGES[0], {**IMAGES[0], "id": 2, "file_name": "./1.png"}]
    records, rejected = read(tmp_path, [{**BOX, "image_id": 2}], images)
    assert [(record.image_id, len(record.lesions)) for record in records] == [("1", 1)], "no copy denies the box"
    assert records[0].lesions[0].flags == ("incomplete_image",), "the two entries do not say the same"
    assert [row.reason for row in rejected] == ["image is listed twice and was merged with its first entry"]
    records, _ = read(tmp_path, [BOX, {**BOX, "image_id": 2}], images)
    assert [lesion.flags for lesion in records[0].lesions] == [()], "both entries say the same"


def test_one_id_for_two_files_leaves_neither(tmp_path: Path) -> None:
    records, rejected = read(tmp_path, [BOX], [IMAGES[0], {**IMAGES[1], "id": 1.0}, IMAGES[2]])
    assert [record.image_id for record in records] == ["3"]
    assert "its image was rejected" in [row.reason for row in rejected]


def yolo(folder: Path, labels: dict[str, str], pictures: list[str]):
    for name in pictures:
        picture(folder / name)
    for name, text in labels.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return parted(readers.create("yolo", classes=("nodule",)).read(folder, folder))


LINE = "0 0.35 0.5 0.5 0.5\n"


def test_a_tree_of_images_and_labels_finds_its_labels(tmp_path: Path) -> None:
    names = {f"{part}/labels/{n}.txt": LINE for part, n in (("train", 1), ("valid", 2))}
    records, rejected = yolo(tmp_path, names, ["train/images/1.png", "valid/images/2.png"])
    assert not rejected
    assert [len(record.lesions) for record in records] == [1, 1]


def test_labels_that_match_no_image_at_all_refuse_the_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"not one of the 2 label files .* belongs to a picture"):
        yolo(tmp_path, {"l/1.txt": LINE, "l/2.txt": LINE}, ["p/1.png", "p/2.png"])


def test_an_image_whose_label_file_lies_elsewhere_is_no_negative(tmp_path: Path) -> None:
    records, rejected = yolo(tmp_path, {"p/1.txt": LINE, "q/2.txt": LINE}, ["p/1.png", "p/2.png", "p/3.png"])
    assert [record.image_id for record in records] == ["p/1", "p/3"]
    assert rejected[0].reason == "image has no label file, but one of its name lies elsewhere"


def test_two_images_that_share_a_label_file_are_both_rejected(tmp_path: Path) -> None:
    records, rejected = yolo(tmp_path, {"1.txt": LINE}, ["1.png", "1.jpg", "2.png"])
    assert [record.image_id for record in records] == ["2"]
    assert len(rejected) == 2


def test_objects_elsewhere_than_voc_puts_them_are_no_negative(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "xml").mkdir()
    inner = (
        "<object><name>mass</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox></object>"
    )
    head = "<annotation><filename>a.png</filename><size><width>100</width><height>80</height></size>"
    for text in (f"{head}<objects>{inner}</objects></annotation>", f"{head}<Object/></annotation>"):
        (tmp_path / "xml" / "a.xml").write_text(text)
        records, rejected = parted(readers.create("voc").read(tmp_path / "xml", tmp_path / "images"))
        assert not records
        assert rejected[0].reason == "objects elsewhere than Pascal VOC puts them: annotation/object/bndbox"


VINDR = "image_id,class_name,rad_id,x_min,y_min,x_max,y_max\n"


@pytest.mark.parametrize("line", [b"a,Nodule,R2,10,20,30\n", b"a,Nod\xff,R2,10,20,30,40\n"])
def test_a_damaged_line_of_a_table_takes_the_negative_it_speaks_of(tmp_path: Path, line: bytes) -> None:
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
    table = tmp_path / "table.csv"
    table.write_bytes(f"{VINDR}a,No finding,R1,,,,\nb,No finding,R1,,,,\n".encode() + line)
    records, _ = parted(readers.create("vindr").read(table, tmp_path / "images"))
    assert [record.image_id for record in records] == ["b"]


def test_two_names_of_one_picture_are_one_image(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    table = tmp_path / "table.csv"
    table.write_text(f"{VINDR}a,No finding,R1,,,,\na.png,Nodule,R2,10,20,60,60\n")
    records, _ = parted(readers.create("vindr").read(table, tmp_path / "images"))
    assert [(record.image_id, len(record.lesions)) for record in records] == [("a", 1)]
    table.write_text("patientId,x,y,width,height,Target\na,,,,,0\na.png,10,20,50,40,1\n")
    records, rejected = parted(readers.create("rsna").read(table, tmp_path / "images"))
    assert not records
    assert rejected[0].reason == "Target is not one of 0 and 1"

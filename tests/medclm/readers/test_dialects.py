"""Dialects of annotation files: what other tools write, read as they mean it or rejected with what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.medclm.pictures import coco, parted, picture
from trimtab.medclm import readers

ROW = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 20, 50, 40]}
IMAGE = {"id": 1, "file_name": "a.png", "width": 100, "height": 80}
CORNERS = (0.1, 0.25, 0.6, 0.75)


def read_coco(path: Path):
    return parted(readers.create("coco").read(path, path.parent / "images"))


@pytest.mark.parametrize(
    "image",
    [
        {"width": 100.0, "height": 80.0},
        {"width": "100", "height": "80"},
        {"width": None, "height": None},
        {"width": 0, "height": 0},
        {"file_name": "images/a.png"},
        {"file_name": ".\\a.png"},
    ],
)
def test_coco_sizes_and_names_of_other_tools(tmp_path: Path, image: dict[str, object]) -> None:
    records, rejected = read_coco(coco(tmp_path, [[10, 20, 50, 40]], images=[{**IMAGE, **image}]))
    assert not rejected
    assert records[0].lesions[0].box.corners == CORNERS
    assert (records[0].width, records[0].height, records[0].file) == (100, 80, "a.png")


def test_an_empty_bbox_with_a_polygon_gets_the_box_of_the_polygon(tmp_path: Path) -> None:
    row = {**ROW, "bbox": [], "segmentation": [[10, 20, 60, 20, 60, 60], [10, 60, 10.5, 59, 11, 60]]}
    records, rejected = read_coco(coco(tmp_path, [], annotations=[row]))
    assert not rejected
    assert records[0].lesions[0].box.corners == CORNERS


@pytest.mark.parametrize(
    ("counts", "flags"), [([820, 40, 7140], ()), ([820, 10, 20, 10, 7140], ("crowd",))], ids=["one piece", "two pieces"]
)
def test_a_crowd_of_one_piece_is_a_lesion_as_cvat_writes_masks(
    tmp_path: Path, counts: list[int], flags: tuple[str, ...]
) -> None:
    row = {**ROW, "iscrowd": 1, "segmentation": {"size": [80, 100], "counts": counts}}
    records, rejected = read_coco(coco(tmp_path, [], annotations=[row]))
    assert not rejected
    assert records[0].lesions[0].flags == flags
    records, _ = read_coco(coco(tmp_path, [], annotations=[{**ROW, "iscrowd": 1}]))
    assert records[0].lesions[0].flags == ("crowd",)


def test_a_missing_image_says_where_pictures_of_its_name_lie(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "deep" / "b.png")
    for name, reason in (
        ("up/b.png", "image is missing"),
        ("../../data/upload/3/b.png", "file name leaves the image folder"),
    ):
        _, rejected = read_coco(coco(tmp_path, [], images=[{**IMAGE, "file_name": name}]))
        assert rejected[0].reason == reason
        assert "pictures of that name: deep/b.png; images must be the folder that" in rejected[0].value


VOC = "<annotation><filename>{name}</filename>{size}<object><name>mass</name><bndbox><xmin>11</xmin><ymin>21</ymin><xmax>60</xmax><ymax>60</ymax></bndbox></object></annotation>"  # noqa: E501
SIZE = "<size><width>100</width><height>80</height></size>"


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("a", SIZE), ("a.png", "<size><width>0</width><height>0</height></size>"), ("a.png", ""),
        ("IMG_0001.JPG", SIZE), ("images/a.png", SIZE), ("a.png", SIZE.replace("100", "100.0")),
    ],
)  # fmt: skip
def test_voc_names_and_sizes_of_other_tools(tmp_path: Path, name: str, size: str) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "xml").mkdir()
    (tmp_path / "xml" / "a.xml").write_text(VOC.format(name=name, size=size))
    records, rejected = parted(readers.create("voc").read(tmp_path / "xml", tmp_path / "images"))
    assert not rejected
    assert (records[0].image_id, records[0].lesions[0].box.corners) == ("a", CORNERS)


BOX = "0 0.35 0.5 0.5 0.5"
POINTS = " 0.2 0.3 0 0.4 0.5 2"


def read_yolo(folder: Path, line: str, kpt_shape: str = ""):
    picture(folder / "images" / "a.png")
    (folder / "labels").mkdir(exist_ok=True)
    (folder / "labels" / "a.txt").write_text(line)
    (folder / "data.yaml").write_text(f"names: [mass]\n{kpt_shape}\n")
    return parted(readers.create("yolo").read(folder / "labels", folder / "images"))


@pytest.mark.parametrize(
    ("line", "kpt_shape", "flags"),
    [
        (f"{BOX} 0.87", "", ("confidence_0.87",)),
        ("0 0.1 0.25 0.6 0.25 0.6 0.75 0.1 0.75", "", ()),
        ("0 0.1 0.25 0.6 0.25 0.6 0.75 0.1 0.75 0.5", "", ("confidence_0.5",)),
        (BOX + POINTS, "kpt_shape: [2, 3]", ()),
        (f"{BOX}{POINTS} 1", "kpt_shape: [2, 3]", ("confidence_1",)),
        (f"{BOX} 0.9 0.9 0.1 0.1", "kpt_shape: [2, 2]", ()),
    ],
)
def test_yolo_columns_of_poses_and_confidences(
    tmp_path: Path, line: str, kpt_shape: str, flags: tuple[str, ...]
) -> None:
    records, rejected = read_yolo(tmp_path, line, kpt_shape)
    assert not rejected
    (lesion,) = records[0].lesions
    assert lesion.box.corners == pytest.approx(CORNERS)
    assert lesion.flags == flags


@pytest.mark.parametrize(
    ("line", "kpt_shape", "reason"),
    [
        (f"{BOX} 87", "", "confidence at the end of the line is not in [0, 1]"),
        (BOX + POINTS, "", "line reads as a box with keypoints: give kpt_shape, in data.yaml or as an option"),
        (BOX + POINTS, "kpt_shape: [3, 3]", "line is not a class number, 4 numbers and 3 x 3 values of keypoints"),
        (BOX, "kpt_shape: [2, 3]", "line is not a class number, 4 numbers and 2 x 3 values of keypoints"),
    ],
)
def test_yolo_lines_that_may_mean_two_things_are_rejected(
    tmp_path: Path, line: str, kpt_shape: str, reason: str
) -> None:
    records, rejected = read_yolo(tmp_path, line, kpt_shape)
    assert not records
    assert rejected[0].reason == reason


def test_kpt_shape_is_also_an_option(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_text(BOX + POINTS)
    reader = readers.create("yolo", classes=("mass",), kpt_shape=(2, 3))
    records, _ = parted(reader.read(tmp_path / "labels", tmp_path / "images"))
    assert records[0].lesions[0].box.corners == pytest.approx(CORNERS)


@pytest.mark.parametrize("shape", ["3", "[0, 3]", "[2, 4]", "[2.5, 3]", "[2]"])
def test_a_kpt_shape_that_is_none_is_an_error_that_names_the_file(tmp_path: Path, shape: str) -> None:
    with pytest.raises(ValueError, match=r"data\.yaml: kpt_shape must be"):
        read_yolo(tmp_path, BOX, f"kpt_shape: {shape}")


def test_notes_beside_the_labels_are_no_labels(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "README.roboflow.txt").write_text("exported\n")
    records, rejected = read_yolo(tmp_path, BOX)
    assert (len(records), rejected) == (1, [])


HEAD = "image_id,rad_ID,class_name,x_min,y_min,x_max,y_max\n"
PHYSIONET = HEAD + "a,R1,Mass,10,20,60,60\na,R2,Mass,10,20,60,60\nb,R1,No finding,,,,\n"
CONSENSUS = "image_id,class_name,x_min,y_min,x_max,y_max\na,Mass,10,20,60,60\na,Mass,12,20,60,60\nb,No finding,,,,\n"


@pytest.mark.parametrize(
    ("text", "flags"), [(PHYSIONET, [("readers_2_of_2",)]), (CONSENSUS, [(), ()])], ids=["train", "test"]
)
def test_vindr_as_physionet_ships_it(tmp_path: Path, text: str, flags: list[tuple[str, ...]]) -> None:
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
    (tmp_path / "table.csv").write_text(text)
    records, rejected = parted(readers.create("vindr").read(tmp_path / "table.csv", tmp_path / "images"))
    assert not rejected
    assert [lesion.flags for lesion in records[0].lesions] == flags
    assert records[0].lesions[0].box.corners == pytest.approx(CORNERS)
    assert records[1].lesions == ()


def test_two_columns_of_one_name_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "table.csv").write_text(CONSENSUS.replace("class_name", "CLASS_NAME,Class_Name"))
    with pytest.raises(ValueError, match="2 columns are called 'class_name'"):
        parted(readers.create("vindr").read(tmp_path / "table.csv", tmp_path / "images"))

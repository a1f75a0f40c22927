"""Pictures with an EXIF orientation: delivered the way their boxes were drawn, or rejected where that is open."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.medclm.pictures import coco, parted
from trimtab.medclm import readers
from trimtab.medclm.building import BuildOptions, build
from trimtab.medclm.pixels import picture_header, read_picture


def turned(path: Path, orientation: int, width: int = 100, height: int = 80) -> Path:
    """A picture whose stored upper left quarter is white, with an EXIF orientation."""
    pixels = np.zeros((height, width), dtype=np.uint8)
    pixels[: height // 2, : width // 2] = 255
    picture = Image.fromarray(pixels)
    exif = picture.getexif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path, exif=exif, **({"quality": 100} if path.suffix == ".jpg" else {}))
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_upright_pixels_are_those_of_every_viewer(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = turned(tmp_path / f"a{suffix}", orientation)
    assert picture_header(path) == ((100, 80), orientation)
    with Image.open(path) as picture:
        seen = np.array(ImageOps.exif_transpose(picture).convert("L")) > 127
    ours = read_picture(path, upright=True)
    assert np.array_equal((ours if ours.ndim == 2 else ours[..., 0]) > 127, seen)


def one_box(folder: Path, turn: int, stated: dict[str, int], size: tuple[int, int] = (100, 80), **options: object):
    path = coco(folder, [[0, 0, 20, 20]], images=[{"id": 1, "file_name": "a.jpg", **stated}])
    turned(folder / "images" / "a.jpg", turn, *size)
    return parted(readers.create("coco", **options).read(path, folder / "images"))


STORED, UPRIGHT = {"width": 100, "height": 80}, {"width": 80, "height": 100}
OPEN = "EXIF orientation leaves open which way up the boxes were drawn"


@pytest.mark.parametrize(
    ("orientation", "stated", "options", "expected"),
    [
        (6, STORED, {}, (100, 80, False)),
        (6, UPRIGHT, {}, (80, 100, True)),
        (6, {}, {}, OPEN),
        (3, STORED, {}, OPEN),
        (3, STORED, {"orientation": "stored"}, (100, 80, False)),
        (3, STORED, {"orientation": "upright"}, (100, 80, True)),
        (6, {}, {"orientation": "upright"}, (80, 100, True)),
        (6, STORED, {"orientation": "upright"}, "image has another size than stated"),
        (1, UPRIGHT, {}, "image has another size than stated"),
    ],
)
def test_the_stated_size_says_which_way_up_the_boxes_were_drawn(
    tmp_path: Path, orientation: int, stated: dict[str, int], options: dict[str, str], expected: object
) -> None:
    records, rejected = one_box(tmp_path, orientation, stated, **options)
    found = [(record.width, record.height, record.upright) for record in records]
    assert found == ([] if isinstance(expected, str) else [expected])
    assert isinstance(expected, tuple) or rejected[0].reason == expected


@pytest.mark.parametrize(("stated", "corner"), [(STORED, (0, 0)), (UPRIGHT, (0, -1))])
def test_the_delivered_picture_is_what_the_boxes_were_drawn_on(
    tmp_path: Path, stated: dict[str, int], corner: tuple[int, int]
) -> None:
    one_box(tmp_path, 6, stated)
    options = BuildOptions(detections=tmp_path / "set.json", format="coco", images=tmp_path / "images")
    result = build(options, tmp_path / "out")
    (record,) = result.folder.records()
    assert (record.width, record.height, record.upright) == (stated["width"], stated["height"], False)
    with Image.open(tmp_path / "out" / "images" / record.file) as picture:
        assert picture.size == (record.width, record.height)
        assert 0x0112 not in picture.getexif()
        assert np.array(picture.convert("L"))[corner] > 200, "the white quarter is where it was seen"

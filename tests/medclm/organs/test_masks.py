from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_masks

from tests.medclm.pictures import coco, image_record, mask
from trimtab.medclm import organs
from trimtab.medclm.coco import decode, encode, run_lengths
from trimtab.medclm.organs.rle import read_organs, write_organs
from trimtab.medclm.organs.source import OrganError

RECORD = image_record()
LEFT = np.zeros((80, 100), dtype=bool)
LEFT[10:70, 60:90] = True
RIGHT = LEFT[:, ::-1].copy()


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_run_lengths_are_pycocotools_own(height: int, width: int, share: float, seed: int) -> None:
    pixels = np.random.default_rng(seed).random((height, width)) < share
    counts = encode(pixels)
    assert np.array_equal(decode(counts, height, width), pixels)
    assert coco_masks.area({"size": [height, width], "counts": counts.encode()}) == pixels.sum()
    with pytest.raises(ValueError, match=f"cover {height * width} pixels"):
        decode(counts, height + 1, width)


def test_segmentations_of_every_kind_become_run_lengths() -> None:
    pixels = np.zeros((10, 12), dtype=bool)
    pixels[2:6, 3:8] = True
    flat = np.asfortranarray(pixels).ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    plain = {"size": [10, 12], "counts": np.diff([0, *edges, flat.size]).tolist()}
    polygon = [[3, 2, 8, 2, 8, 6, 3, 6]]
    packed = {"size": [10, 12], "counts": encode(pixels)}
    for kind in (plain, polygon, packed):
        assert np.array_equal(coco_masks.decode(run_lengths(kind, 10, 12)).astype(bool), pixels)
    for wrong, message in (
        ({"size": [12, 10], "counts": [120]}, "of size"),
        ({"size": [10, 12], "counts": [119]}, "cover 119 pixels"),
        ({"size": [10, 12], "counts": "~~"}, "hold the character"),
        ([[1, 2]], "3 corners or more; one has 2 values"),
    ):
        with pytest.raises(ValueError, match=message):
            run_lengths(wrong, 10, 12)


def test_organ_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    write_organs(tmp_path / "sub" / "a.json", {"left lung": LEFT, "heart": LEFT & RIGHT})
    source = organs.create("rle", folder=tmp_path)
    record = image_record(file="sub/a.png")
    assert np.array_equal(source.masks(record, None)["left lung"], LEFT)
    assert "heart" not in source.masks(record, None), "an organ without a pixel is not in the picture"
    named = record.model_copy(update={"organ_file": "sub/a.json", "file": "other.png"})
    assert list(source.masks(named, None)) == ["left lung"]
    with pytest.raises(ValueError, match="must have one size"):
        write_organs(tmp_path / "b.json", {"a": LEFT, "b": LEFT[:5]})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "organ file is missing"),
        ("{", "organ file is unreadable"),
        ('{"size": [8, 10], "organs": {"a": "00"}}', "organ file is unreadable"),
        (
            json.dumps({"size": [4, 4], "organs": {"a": encode(np.ones((4, 4), dtype=bool))}}),
            "mask has another size than its image",
        ),
        (json.dumps({"size": [80, 100], "organs": {"a": encode(LEFT)}}), "organ file lacks an organ"),
    ],
)
def test_organ_files_that_cannot_be_used_say_why(tmp_path: Path, text: str | None, reason: str) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text)
    required = ("heart",) if reason.startswith("organ file lacks") else ()
    with pytest.raises(OrganError) as caught:
        organs.create("rle", folder=tmp_path, required=required).masks(RECORD, None)
    assert caught.value.rejected.reason == reason
    if text is not None and "size" not in reason and reason.endswith("unreadable"):
        with pytest.raises(OrganError):
            read_organs(tmp_path / "a.json")


def test_a_picture_per_organ(tmp_path: Path) -> None:
    mask(tmp_path / "left_lung" / "a.png", LEFT * 255)
    mask(tmp_path / "heart" / "a.png", LEFT * 0)
    found = organs.create("png", folder=tmp_path).masks(RECORD, None)
    assert list(found) == ["left lung"]
    assert np.array_equal(found["left lung"], LEFT)
    (tmp_path / "heart" / "a.png").unlink()
    with pytest.raises(OrganError, match=r"a\.png: mask folder lacks an organ: .*heart/a\.png"):
        organs.create("png", folder=tmp_path).masks(RECORD, None)
    assert list(organs.create("png", folder=tmp_path, optional=("heart",)).masks(RECORD, None)) == ["left lung"]
    assert list(organs.create("png", folder=tmp_path, organs=("left_lung",)).masks(RECORD, None)) == ["left lung"]
    with pytest.raises(FileNotFoundError, match="no folder \\['liver'\\]"):
        organs.create("png", folder=tmp_path, organs=("liver",))
    with pytest.raises(NotADirectoryError):
        organs.create("png", folder=tmp_path / "none")


def test_masks_of_another_size_are_scaled_only_when_asked_and_alike(tmp_path: Path) -> None:
    mask(tmp_path / "lung" / "a.png", LEFT[::2, ::2] * 255)
    with pytest.raises(OrganError, match="mask 50 x 40, image 100 x 80; same proportions: resize=True"):
        organs.create("png", folder=tmp_path).masks(RECORD, None)
    assert np.array_equal(organs.create("png", folder=tmp_path, resize=True).masks(RECORD, None)["lung"], LEFT)
    mask(tmp_path / "lung" / "a.png", LEFT[::2] * 255)
    with pytest.raises(OrganError, match=r"mask 100 x 40, image 100 x 80$"):
        organs.create("png", folder=tmp_path, resize=True).masks(RECORD, None)
    (tmp_path / "lung" / "a.png").write_bytes(b"no")
    with pytest.raises(OrganError, match="mask is unreadable"):
        organs.create("png", folder=tmp_path).masks(RECORD, None)


def test_label_maps(tmp_path: Path) -> None:
    mask(tmp_path / "a.png", LEFT * 2 + RIGHT * 1)
    (tmp_path / "labels.json").write_text('{"1": "Right_Lung", "2": "left lung"}')
    found = organs.create("labels", folder=tmp_path).masks(RECORD, None)
    assert set(found) == {"right lung", "left lung"}
    assert np.array_equal(found["right lung"], RIGHT)
    with pytest.raises(OrganError, match=r"values without a name: \[2\]; labels\.json or labels= names \[1\]"):
        organs.create("labels", folder=tmp_path, labels={1: "x"}).masks(RECORD, None)
    with pytest.raises(OrganError, match="label map is missing"):
        organs.create("labels", folder=tmp_path).masks(image_record(file="b.png"), None)
    (tmp_path / "labels.json").write_text('{"0": "background"}')
    with pytest.raises(ValueError, match="values must be 1 or more"):
        organs.create("labels", folder=tmp_path)
    (tmp_path / "labels.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels\.json is missing"):
        organs.create("labels", folder=tmp_path)


def test_organs_that_are_classes_of_a_coco_file(tmp_path: Path) -> None:
    path = coco(tmp_path, [[60, 20, 20, 40]])
    found = organs.create("coco", file=path, organs=["nodule"]).masks(RECORD, None)["nodule"]
    assert found.sum() == pytest.approx(np.pi * 10 * 20, rel=0.02)
    assert found[40, 70]
    assert not found[21, 61]
    whole = organs.create("coco", file=path, organs=["nodule"], shape="box").masks(RECORD, None)["nodule"]
    assert whole.sum() == 800
    assert whole[20:60, 60:80].all()
    with pytest.raises(OrganError, match="image lacks an organ: nodule"):
        organs.create("coco", file=path, organs=["nodule"]).masks(image_record(file="b.png"), None)
    with pytest.raises(ValueError, match="no class \\['liver'\\]"):
        organs.create("coco", file=path, organs=["liver"])
    size = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": {"size": [8, 10], "counts": [80]}}
    with pytest.raises(OrganError, match=r"mask does not fit its image: run lengths of size \[8, 10\]"):
        organs.create("coco", file=coco(tmp_path, [], annotations=[size]), organs=["nodule"]).masks(RECORD, None)


def test_sources_are_combined_and_may_not_overlap(tmp_path: Path) -> None:
    mask(tmp_path / "one" / "left_lung" / "a.png", LEFT)
    mask(tmp_path / "two" / "right_lung" / "a.png", RIGHT)
    one, two = (organs.create("png", folder=tmp_path / name) for name in ("one", "two"))
    assert set(organs.Combined([one, two]).masks(RECORD, None)) == {"left lung", "right lung"}
    with pytest.raises(OrganError, match="organ comes from two sources: left lung"):
        organs.Combined([one, one]).masks(RECORD, None)
    with pytest.raises(ValueError, match="there are coco, cxas"):
        organs.create("oracle")


RETINA = {
    "images": [{"id": 1, "file_name": "a.png", "width": 100, "height": 80}],
    "categories": [{"id": 1, "name": "optic_disc"}],
}


def test_the_retina_is_parted_around_the_disc(tmp_path: Path) -> None:
    disc = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [70, 30, 10, 10]}
    path = coco(tmp_path, [], annotations=[disc], **RETINA)
    found = organs.create("retina", disc=path).masks(RECORD, None)
    parts = {name: m for name, m in found.items() if name not in ("retina", "optic disc")}
    assert set(parts) == {f"{a} {b} retina" for a in ("superior", "inferior") for b in ("temporal", "nasal")}
    assert parts["superior temporal retina"][10, 10], "a right eye: its disc is on the right, temporal on the left"
    assert parts["inferior nasal retina"][70, 95]
    together = sum(m.astype(int) for m in (*parts.values(), found["optic disc"]))
    assert (together == found["retina"]).all(), "disc and parts cover the retina without overlap"
    left_eye = {**disc, "bbox": [20, 30, 10, 10]}
    parts = organs.create("retina", disc=coco(tmp_path, [], annotations=[left_eye], **RETINA)).masks(RECORD, None)
    assert parts["superior temporal retina"][10, 90]
    central = {**disc, "bbox": [46, 30, 10, 10]}
    assert set(
        organs.create("retina", disc=coco(tmp_path, [], annotations=[central], **RETINA)).masks(RECORD, None)
    ) == {
        "retina",
        "optic disc",
    }


def test_the_field_of_view_limits_the_retina(tmp_path: Path) -> None:
    disc = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [70, 30, 10, 10]}
    path = coco(tmp_path, [], annotations=[disc], **RETINA)
    mask(tmp_path / "field" / "a.png", LEFT[::2, ::2] | RIGHT[::2, ::2])
    source = organs.create("retina", disc=path, field=tmp_path / "field")
    assert np.array_equal(source.masks(RECORD, None)["retina"], LEFT | RIGHT)
    (tmp_path / "field" / "a.png").unlink()
    with pytest.raises(OrganError, match="mask of the field of view is missing"):
        source.masks(RECORD, None)

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.medclm.pictures import parted
from trimtab.medclm import organs, readers
from trimtab.medclm.hosts import assign_hosts
from trimtab.medclm.phantom import FINDINGS, draw, write_phantom
from trimtab.medclm.places import bounds, eye, midline
from trimtab.medclm.rules import host_rules

SIZE = 192


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_phantom(tmp_path_factory.mktemp("phantom"), images=12, seed=4, size=SIZE)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another() -> None:
    one, two, other = draw(1, ["mass"], SIZE), draw(1, ["mass"], SIZE), draw(2, ["mass"], SIZE)
    assert np.array_equal(one.picture, two.picture)
    assert np.array_equal(one.lesions[0].mask, two.lesions[0].mask)
    assert not np.array_equal(one.picture, other.picture)


@pytest.mark.parametrize("label", FINDINGS)
def test_every_finding_can_be_drawn_inside_its_organ(label: str) -> None:
    phantom = draw(5, [label], SIZE)
    (lesion,) = phantom.lesions
    assert lesion.label == label
    assert lesion.mask.any()
    assert not (lesion.mask & ~phantom.organs[lesion.organ]).any()
    assert lesion.side == next((side for side in ("left", "right") if lesion.organ.startswith(side)), "midline")


@pytest.mark.parametrize("label", [label for label in FINDINGS if label != "cardiomegaly"])
def test_a_finding_is_denser_than_the_lung_around_it(label: str) -> None:
    phantom = draw(6, [label], SIZE)
    (lesion,) = phantom.lesions
    around = (
        ndimage.binary_dilation(lesion.mask, iterations=SIZE // 16)
        & phantom.organs[f"{lesion.side} lung"]
        & ~lesion.mask
    )
    assert phantom.picture[lesion.mask].mean() > phantom.picture[around].mean() + 15


def test_a_large_heart_takes_more_than_half_of_the_thorax_and_a_normal_one_less() -> None:
    for seed in range(3):
        ratios = []
        for findings in ([], ["cardiomegaly"]):
            masks = draw(seed, findings, SIZE).organs
            heart, right, left = (bounds(masks[name]) for name in ("heart", "right lung", "left lung"))
            assert heart is not None
            assert right is not None
            assert left is not None
            ratios.append((heart.x1 - heart.x0) / (left.x1 - right.x0))
        assert ratios[0] < 0.5 < ratios[1]


def test_organs_lie_where_they_belong() -> None:
    masks = draw(7, [], SIZE).organs
    boxes = {name: around for name, mask in masks.items() if (around := bounds(mask)) is not None}
    assert set(boxes) == set(masks)
    assert boxes["right lung"].x1 < boxes["left lung"].x0, "the patient's right is on the left of the picture"
    assert boxes["heart"].centre[0] > midline(boxes), "the heart lies to the left"
    for side, parts in (("right", ("upper", "middle", "lower")), ("left", ("upper", "lower"))):
        lobes = [masks[f"{side} {part} lobe"] for part in parts]
        assert (sum(lobe.astype(int) for lobe in lobes) == masks[f"{side} lung"]).all(), "lobes cover the lung once"
        assert not (masks[f"{side} lung"] & ~masks["thorax"]).any()
    assert boxes["diaphragm"].y0 > boxes["right upper lobe"].y1
    assert eye(boxes) is None


def test_the_written_set_is_read_back_without_a_rejected_row(folder: Path) -> None:
    records, rejected = parted(readers.create("coco").read(folder / "detections.json", folder / "images"))
    assert not rejected
    assert len(records) == 12
    assert any(not record.lesions for record in records)
    assert 1 < len({record.patient for record in records}) < 12
    document = json.loads((folder / "detections.json").read_text())
    assert {entry["name"] for entry in document["categories"]} == set(FINDINGS)


def test_hosts_and_sides_of_the_written_set_are_the_truth(folder: Path) -> None:
    records, _ = parted(readers.create("coco").read(folder / "detections.json", folder / "images"))
    truth = {
        f"{entry['image_id']}/{entry['id']}": entry
        for entry in json.loads((folder / "detections.json").read_text())["annotations"]
    }
    source, rules = organs.create("rle", folder=folder / "organs"), host_rules("chest")
    lesions = [
        lesion for record in records for lesion in assign_hosts(record, source.masks(record, None), rules).lesions
    ]
    assert len(lesions) > 5
    for lesion in lesions:
        assert lesion.host is not None
        true = truth[lesion.lesion_id]
        assert true["host"] in (lesion.host.organ, *rules.ancestors(lesion.host.organ)) or (
            true["host"].split()[0] == lesion.host.organ.split()[0]
        ), lesion
        if true["side"] != "midline":
            assert lesion.host.side == true["side"]


def test_writing_again_gives_the_same_files(folder: Path, tmp_path: Path) -> None:
    again = write_phantom(tmp_path, images=3, seed=4, size=SIZE)
    for path in sorted((again / "images").iterdir()):
        assert path.read_bytes() == (folder / "images" / path.name).read_bytes()
        organ = path.with_suffix(".json").name
        assert (again / "organs" / organ).read_bytes() == (folder / "organs" / organ).read_bytes()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown findings \['rash'\]; a phantom can have nodule"):
        draw(1, ["rash"])
    with pytest.raises(ValueError, match="128 or more"):
        draw(1, size=64)
    with pytest.raises(ValueError, match="images must be a whole number of 1 or more"):
        write_phantom(tmp_path, images=0)

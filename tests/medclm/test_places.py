from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from tests.medclm.pictures import image_record, parted
from tests.medclm.test_hosts import box, masks_of
from trimtab.medclm import readers
from trimtab.medclm.hosts import assign_hosts
from trimtab.medclm.organs.folders import PngOrgans
from trimtab.medclm.places import bounds, disc_distance, eye, midline, side_and_conflict, zone_of
from trimtab.medclm.records import Box
from trimtab.medclm.rules import HostRules


def boxes_of(**areas: tuple[int, int, int, int]) -> dict[str, Box]:
    return {name: around for name, mask in masks_of(**areas).items() if (around := bounds(mask)) is not None}


LUNGS = boxes_of(right_lung=(10, 10, 40, 70), left_lung=(60, 10, 90, 70))


def test_the_patients_right_is_on_the_left_of_the_picture() -> None:
    assert side_and_conflict(box(12, 20, 18, 30), "thorax", LUNGS, "radiological") == ("right", False)
    assert side_and_conflict(box(82, 20, 88, 30), "thorax", LUNGS, "radiological") == ("left", False)
    assert side_and_conflict(box(82, 20, 88, 30), "thorax", LUNGS, "neurological") == ("right", False)
    assert side_and_conflict(box(48, 20, 52, 30), "thorax", LUNGS, "radiological") == ("midline", False)
    assert side_and_conflict(box(12, 20, 18, 30), "thorax", LUNGS, "none") == (None, False)
    heart = box(42, 40, 74, 60)  # its middle is on the patient's left, and it reaches across the midline
    assert side_and_conflict(heart, "heart", LUNGS, "radiological") == (None, False)


def test_a_paired_organs_name_decides_and_a_mirrored_picture_is_noticed() -> None:
    assert side_and_conflict(box(38, 20, 55, 30), "right lung", LUNGS, "radiological") == ("right", False)
    mirrored = {"right lung": LUNGS["left lung"], "left lung": LUNGS["right lung"]}
    assert side_and_conflict(box(62, 20, 68, 30), "right lung", mirrored, "radiological") == ("right", True)
    record = image_record(box(62, 20, 68, 30))
    found = assign_hosts(record, masks_of(right_lung=(60, 10, 90, 70), left_lung=(10, 10, 40, 70))).lesions[0]
    assert found.flags == ("side_conflict",)


def test_the_midline_lies_between_the_lungs_wherever_the_body_is() -> None:
    assert midline(LUNGS) == 0.5
    assert midline(boxes_of(right_lung=(30, 0, 50, 80), left_lung=(60, 0, 90, 80))) == pytest.approx(0.575)
    assert midline(boxes_of(thorax=(30, 0, 100, 80))) == pytest.approx(0.65)
    assert midline({}) == 0.5


def test_lung_zones_are_thirds_of_the_lungs_height() -> None:
    hosts = ("right upper lobe", "right lung", "thorax")
    zones = [zone_of(box(12, y, 18, y + 4), hosts, LUNGS, 1.25, "lung_thirds") for y in (12, 27, 29, 47, 49, 60)]
    assert zones == ["upper zone", "upper zone", "middle zone", "middle zone", "lower zone", "lower zone"]
    assert zone_of(box(12, 12, 18, 16), ("heart", "thorax"), LUNGS, 1.25, "lung_thirds") is None
    assert zone_of(box(12, 12, 18, 16), hosts, LUNGS, 1.25, "none") is None


DISC = boxes_of(optic_disc=(70, 30, 80, 40))


def test_distance_from_the_disc_is_in_its_diameters_whatever_the_pictures_shape() -> None:
    disc = DISC["optic disc"]
    assert disc_distance(box(70, 30, 80, 40), disc, 100 / 80) == pytest.approx(-0.5)
    assert disc_distance(box(50, 30, 60, 40), disc, 100 / 80) == pytest.approx(1.5)
    assert disc_distance(box(70, 50, 80, 60), disc, 100 / 80) == pytest.approx(1.5)
    assert disc_distance(box(40, 70, 50, 80), disc, 100 / 80) == pytest.approx(4.5)


def test_disc_zones() -> None:
    found = [zone_of(box(x, 30, x + 4, 40), ("retina",), DISC, 1.25, "disc_distance") for x in (72, 60, 50, 20)]
    assert found == [
        "on the optic disc",
        "within 1 disc diameter of the optic disc",
        "1 to 3 disc diameters from the optic disc",
        "more than 3 disc diameters from the optic disc",
    ]


def test_which_eye() -> None:
    assert eye(DISC) == "right"
    assert eye(boxes_of(optic_disc=(10, 30, 20, 40))) == "left"
    assert eye(boxes_of(optic_disc=(46, 30, 56, 40))) is None
    assert eye({}) is None


def test_sides_of_real_chest_x_rays(tmp_path: Path, shared_data: Path) -> None:
    """Boxes of the left and right lung as "lesions", the lung masks of other annotators as organs: sides must agree."""
    with zipfile.ZipFile(shared_data / "cxr_lungs_covid" / "cxr_lungs_permissive_512.zip") as archive:
        archive.extractall(tmp_path)
    (tmp_path / "organs").mkdir()
    (tmp_path / "lung_masks").rename(tmp_path / "organs" / "lungs")
    with (tmp_path / "metadata.csv").open(encoding="utf-8") as handle:
        patients = {row["file"]: row["patientid"] for row in csv.DictReader(handle)}
    reader = readers.create("coco", modality="chest X-ray", patients=patients)
    records, rejected = parted(reader.read(tmp_path / "lung_boxes_coco.json", tmp_path / "images"))
    assert not rejected
    assert len(records) == 113
    assert len({record.patient for record in records}) == 63
    source = PngOrgans(tmp_path / "organs", optional=("lungs",))
    checked = 0
    for record in records:
        lungs = source.masks(record, None).get("lungs")
        if lungs is None:
            continue
        parts, _ = ndimage.label(lungs)
        sizes = ndimage.sum_labels(lungs, parts, range(1, parts.max() + 1))
        if len(sizes) < 2:
            continue
        largest = sorted(
            (parts == number + 1 for number in np.argsort(sizes)[-2:]), key=lambda part: np.nonzero(part)[1].mean()
        )
        masks = dict(zip(("right lung", "left lung"), largest, strict=True))
        decided = assign_hosts(record, masks, HostRules(rule="mask_iou"))
        for lesion in decided.lesions:
            checked += 1
            assert lesion.host is not None
            assert lesion.host.organ == lesion.label.lower()
            assert f"{lesion.host.side} lung" == lesion.label.lower()
            assert lesion.flags == ()
    assert checked > 100

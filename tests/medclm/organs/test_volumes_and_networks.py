from __future__ import annotations

import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from tests.medclm.pictures import image_record
from trimtab.medclm import organs
from trimtab.medclm.organs.nifti import NiftiOrgans
from trimtab.medclm.organs.segmenters import CxasOrgans, XrayVisionOrgans, sided
from trimtab.medclm.organs.source import OrganError

LABELS = {1: "heart", 2: "left lung"}


def save(path: Path, values: np.ndarray, affine: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values.astype(np.uint8), np.eye(4) if affine is None else affine), path)
    return path


def test_a_flat_map_has_columns_first(tmp_path: Path) -> None:
    values = np.zeros((100, 80, 1))
    values[10:20, 30:60] = 1
    save(tmp_path / "a.nii.gz", values)
    found = NiftiOrgans(tmp_path, LABELS).masks(image_record(), None)
    assert list(found) == ["heart"]
    assert found["heart"][30:60, 10:20].all()
    assert found["heart"].sum() == 300


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, -1)])
def test_slices_of_a_volume_are_shown_in_the_radiological_convention(
    tmp_path: Path, flips: tuple[int, int, int]
) -> None:
    """Whatever way the voxels run, x grows to the patient's right, y to the front and z to the head in world space."""
    shape = (6, 5, 4)
    world = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"))
    right, front, head = world
    values = np.where((right >= 4) & (front >= 3) & (head == 2), 1, 0) + np.where((right == 0) & (front == 0), 2, 0)
    affine = np.diag([*flips, 1.0])
    stored = values
    for axis, flip in enumerate(flips):
        if flip < 0:
            stored = np.flip(stored, axis)
            affine[axis, 3] = shape[axis] - 1
    save(tmp_path / "case.nii.gz", stored, affine)
    found = NiftiOrgans(tmp_path, LABELS, first_slice=1).masks(image_record(file="case/3.png", size=(6, 5)), None)
    assert np.argwhere(found["heart"]).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]], "right is on the left, front is up"
    assert np.argwhere(found["left lung"]).tolist() == [[4, 5]]


def test_turned_axes_are_brought_back(tmp_path: Path) -> None:
    values = np.zeros((6, 5, 4))
    values[5, 4, 2] = 1
    turned = np.transpose(values, (1, 0, 2))
    affine = np.zeros((4, 4))
    affine[0, 1] = affine[1, 0] = affine[2, 2] = affine[3, 3] = 1
    save(tmp_path / "case.nii.gz", turned, affine)
    found = NiftiOrgans(tmp_path, LABELS).masks(image_record(file="case/2.png", size=(6, 5)), None)
    assert np.argwhere(found["heart"]).tolist() == [[0, 0]]


def test_volumes_that_cannot_be_used_say_why(tmp_path: Path) -> None:
    source = NiftiOrgans(tmp_path, LABELS)
    with pytest.raises(OrganError, match="label map is missing"):
        source.masks(image_record(), None)
    save(tmp_path / "case.nii.gz", np.ones((6, 5, 4)))
    with pytest.raises(OrganError, match="slice 9; the volume has 0 to 3"):
        source.masks(image_record(file="case/9.png", size=(6, 5)), None)
    with pytest.raises(OrganError, match="no numbered slice"):
        source.masks(image_record(file="case/x.png", size=(6, 5)), None)
    with pytest.raises(OrganError, match="another size"):
        source.masks(image_record(file="case/1.png", size=(7, 5)), None)
    (tmp_path / "a.nii.gz").write_bytes(b"no")
    with pytest.raises(OrganError, match="label map is unreadable"):
        source.masks(image_record(), None)
    save(tmp_path / "b.nii", np.ones((6, 5, 4)))
    with pytest.raises(OrganError, match="label map is not flat"):
        source.masks(image_record(file="b.png"), None)


class Brightness(torch.nn.Module):
    """A network with known output: it calls bright pixels lung and dark ones trachea, on a map of half the size."""

    targets = ("Left Lung", "Weasand", "Heart")

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[:2] == (1, 1)
        assert float(pixels.min()) >= -1024
        assert float(pixels.max()) <= 1024
        small = torch.nn.functional.avg_pool2d(pixels, 2) / 100
        return torch.cat([small, -small, torch.full_like(small, -9)], dim=1)


def test_xray_vision_masks_come_back_at_the_images_size() -> None:
    image = np.zeros((80, 100), dtype=np.uint8)
    image[:, 60:] = 255
    found = XrayVisionOrgans(Brightness()).masks(image_record(), image)
    assert set(found) == {"left lung", "trachea"}
    assert found["left lung"].shape == (80, 100)
    assert found["left lung"][:, 62:].all()
    assert not found["left lung"][:, :58].any()
    colour = np.repeat(image[:, :, None], 3, axis=2)
    assert np.array_equal(XrayVisionOrgans(Brightness()).masks(image_record(), colour)["trachea"], found["trachea"])
    with pytest.raises(OrganError, match="needs the pixels"):
        XrayVisionOrgans(Brightness()).masks(image_record(), None)
    with pytest.raises(ValueError, match="threshold must lie in"):
        XrayVisionOrgans(Brightness(), threshold=1.0)


class Everywhere:
    """Stands where CXAS would: two structures over the whole picture, at half its size."""

    def process_file(self, filename: str) -> dict[str, list[torch.Tensor]]:
        assert Path(filename).name == "a.png"
        return {"segmentation_preds": [torch.ones(3, 40, 50, dtype=torch.bool)]}


def test_cxas_is_used_only_by_those_who_may(tmp_path: Path) -> None:
    with pytest.raises(PermissionError, match="non-commercial use only"):
        organs.create("cxas", images=tmp_path)
    labels = {0: "lung upper lobe left", 1: "posterior 12th rib right", 2: "heart"}
    source = CxasOrgans(tmp_path, accept_noncommercial=True, model=Everywhere(), labels=labels)
    found = source.masks(image_record(), None)
    assert set(found) == {"left upper lobe", "heart"}
    assert found["heart"].shape == (80, 100)
    one = CxasOrgans(
        tmp_path, accept_noncommercial=True, model=Everywhere(), labels=labels, keep=("right posterior 12th rib",)
    )
    assert list(one.masks(image_record(), None)) == ["right posterior 12th rib"]


@pytest.mark.parametrize(
    ("name", "package", "options"),
    [
        ("torchxrayvision", "torchxrayvision", {}),
        ("totalsegmentator", "TotalSegmentator", {"cache": Path("cache")}),
        ("cxas", "cxas", {"accept_noncommercial": True}),
    ],
)
def test_a_missing_package_says_what_to_install(
    tmp_path: Path, name: str, package: str, options: dict[str, object]
) -> None:
    folders = {"totalsegmentator": {"volumes": tmp_path}, "cxas": {"images": tmp_path}}
    with pytest.raises(ImportError, match=f"pip install {package}. Masks from a folder"):
        organs.create(name, **folders.get(name, {}), **options)


def test_sides_stand_in_front() -> None:
    names = ("lung_lower_lobe_right", "kidney_left", "heart", "rib_right_3", "left lung")
    assert [sided(name) for name in names] == ["right lower lobe", "left kidney", "heart", "rib right 3", "left lung"]


@pytest.mark.parametrize("value", [2.0**32 + 1, -(2.0**40), 1e300])
def test_a_value_beyond_the_labels_is_refused_and_never_wraps_round(tmp_path: Path, value: float) -> None:
    values = np.ones((100, 80, 1))
    values[0, 0] = value
    nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(
        OrganError, match=r"a\.nii: label map holds a value that is no label: allowed are 0 to 2,147,483,647"
    ):
        NiftiOrgans(tmp_path, LABELS).masks(image_record(), None)


def test_a_volume_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    source = NiftiOrgans(tmp_path, LABELS)
    for label, organ in LABELS.items():
        file = save(tmp_path / "a.nii", np.full((100, 80, 1), label))
        os.utime(file, ns=(label, label))
        assert list(source.masks(image_record(), None)) == [organ]

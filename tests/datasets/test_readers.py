"""SVHN, IDX, npz, image folders, segmentation folders, LGG MRI and hippocampus, on small files made here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from tests.datasets.make_files import idx_bytes, write_idx
from trimtab import datasets
from trimtab.datasets.hippocampus import centred

RNG = np.random.default_rng(0)


def random_pixels(*shape: int) -> Any:
    return RNG.integers(0, 256, shape, dtype=np.uint8)


def test_svhn_axes_and_the_zero_that_is_written_as_ten(tmp_path: Path) -> None:
    written = {}
    for name, count in (("train", 40), ("extra", 10), ("test", 20)):
        written[name] = (random_pixels(32, 32, 3, count), (np.arange(count) % 10 + 1)[:, None].astype(np.uint8))
        savemat(tmp_path / f"{name}_32x32.mat", {"X": written[name][0], "y": written[name][1]})
    data = datasets.load("svhn", root=tmp_path, validation=0)
    assert np.array_equal(data.train.images[7].permute(1, 2, 0).numpy(), written["train"][0][..., 7])
    assert data.train.targets[:11].tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
    assert len(datasets.load("svhn", root=tmp_path, validation=0, extra=True).train) == 50
    savemat(tmp_path / "train_32x32.mat", {"X": written["train"][0][:30], "y": written["train"][1]})
    with pytest.raises(ValueError, match=r"train_32x32.mat.*X must be"):
        datasets.load("svhn", root=tmp_path)
    (tmp_path / "train_32x32.mat").write_bytes(b"MATLAB 5.0" + bytes(50))
    with pytest.raises(ValueError, match=r"train_32x32.mat is damaged"):
        datasets.load("svhn", root=tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_files(tmp_path: Path, name: str, compressed: bool) -> None:
    written = write_idx(tmp_path, compressed)
    data = datasets.load(name, root=tmp_path, validation=0)
    assert np.array_equal(data.train.images[:, 0].numpy(), written["train-images"])
    assert data.test.targets.tolist() == written["t10k-labels"].tolist()
    assert data.image_size == (28, 28)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (idx_bytes(np.zeros((40, 28, 28)))[:-1], "31360 values, but holds 31359"),
        (idx_bytes(np.zeros((40, 28, 28))) + b"x", "but holds more"),
        (idx_bytes(np.zeros((40, 784))), "3 dimension"),
        (b"\0\0\x0d\3" + bytes(12), "unsigned bytes"),
        (b"\0\0\x08\3" + b"\xff" * 12, "impossible shape"),
        (b"", "IDX file"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path: Path, content: bytes, message: str) -> None:
    write_idx(tmp_path, compressed=False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(ValueError, match=f"train-images-idx3-ubyte.*{message}"):
        datasets.load("mnist", root=tmp_path)


def test_damaged_gzip_and_missing_companion(tmp_path: Path) -> None:
    write_idx(tmp_path, compressed=True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match=r"train-images-idx3-ubyte.gz"):
        datasets.load("mnist", root=tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte"):
        datasets.load("mnist", root=tmp_path)


def medmnist(path: Path, **replaced: Any) -> dict[str, Any]:
    arrays = {}
    for split, count in (("train", 30), ("val", 10), ("test", 8)):
        arrays[f"{split}_images"] = random_pixels(count, 28, 28)
        arrays[f"{split}_labels"] = (np.arange(count) % 2)[:, None].astype(np.uint8)
    arrays |= replaced
    np.savez(path, **arrays)
    return arrays


def test_npz_keeps_the_shipped_splits_and_reports_duplicates(tmp_path: Path) -> None:
    path = tmp_path / "lungs.npz"
    arrays = medmnist(path)
    arrays["val_images"][:3] = arrays["train_images"][5:8]
    np.savez(path, **arrays)
    data = datasets.load("npz", root=path, classes="healthy, ill")
    assert (data.name, data.classes) == ("lungs", ("healthy", "ill"))
    assert (len(data.train), len(data.validation), len(data.test)) == (30, 10, 8)
    assert np.array_equal(data.validation.images[:, 0].numpy(), arrays["val_images"])
    assert data.notes == ("3 training images also occur in the validation split, byte for byte; kept as shipped",)
    colour = tmp_path / "colour" / "c.npz"
    colour.parent.mkdir()
    np.savez(colour, train_images=random_pixels(40, 9, 7, 3), train_labels=np.arange(40) % 4)
    made = datasets.load("npz", root=colour.parent, validation=0.25)
    assert (len(made.train), len(made.validation), len(made.test)) == (24, 8, 8)
    assert (made.in_channels, made.image_size, made.num_classes, made.notes) == (3, (9, 7), 4, ())


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"train_labels": np.zeros(29, dtype=np.int64)}, "30 images, train_labels 29"),
        ({"train_labels": np.zeros((30, 3), dtype=np.int64)}, "labels must be whole numbers"),
        ({"train_labels": np.zeros(30)}, "labels must be whole numbers"),
        ({"train_images": np.zeros((30, 28, 28))}, "images must be uint8"),
        ({"train_images": random_pixels(30, 28)}, "images must be"),
        ({"train_images": np.array([{}] * 30, dtype=object)}, "allow_pickle"),
        ({"val_images": random_pixels(10, 20, 20)}, "validation images are"),
    ],
)
def test_wrong_arrays_are_named(tmp_path: Path, replaced: dict[str, Any], message: str) -> None:
    medmnist(tmp_path / "x.npz", **replaced)
    with pytest.raises(ValueError, match=message) as caught:
        datasets.load("npz", root=tmp_path / "x.npz")
    assert "x" in str(caught.value)


def save(path: Path, pixels: Any, **arguments: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **arguments)


def test_image_folder_with_and_without_shipped_splits(tmp_path: Path) -> None:
    pictures = {(kind, i): random_pixels(12, 10, 3) for kind in ("cat", "ant") for i in range(10)}
    for (kind, i), pixels in pictures.items():
        save(tmp_path / "plain" / kind / f"{i}.png", pixels)
        save(tmp_path / "split" / ("val" if i < 2 else "train") / kind / f"{i}.png", pixels)
    data = datasets.load("image_folder", root=tmp_path / "plain", validation=0.25)
    assert data.classes == ("ant", "cat")
    assert (len(data.train), len(data.validation), len(data.test)) == (12, 4, 4)
    shipped = datasets.load("image_folder", root=tmp_path / "split")
    assert np.array_equal(shipped.validation.images[0].permute(1, 2, 0).numpy(), pictures["ant", 0])
    assert shipped.validation.targets.tolist() == [0, 0, 1, 1]
    assert len(shipped.test) == 4  # 20 % of the 16 training pictures
    small = datasets.load("image_folder", root=tmp_path / "plain", image_size=(6, 5), channels=1)
    assert (small.in_channels, small.image_size) == (1, (6, 5))


def test_image_folder_refuses_odd_sizes_damage_depth_and_strangers(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        for i in range(5):
            save(tmp_path / "train" / kind / f"{i}.png", random_pixels(8, 8, 3))
    save(tmp_path / "train" / "a" / "9.png", random_pixels(8, 9, 3))
    with pytest.raises(ValueError, match=r"9.png is 8 x 9.*give image_size"):
        datasets.load("image_folder", root=tmp_path)
    assert datasets.load("image_folder", root=tmp_path, image_size=8).image_size == (8, 8)
    deep = tmp_path / "train" / "a" / "9.png"
    save(deep, RNG.integers(0, 60000, (8, 8)).astype(np.uint16))
    with pytest.raises(ValueError, match=r"9.png.*more than 8 bits"):
        datasets.load("image_folder", root=tmp_path)
    deep.write_bytes((tmp_path / "train" / "b" / "0.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"9.png is damaged"):
        datasets.load("image_folder", root=tmp_path)
    deep.unlink()
    save(tmp_path / "test" / "c" / "0.png", random_pixels(8, 8, 3))
    with pytest.raises(ValueError, match=r"class folder\(s\) \['c'\]"):
        datasets.load("image_folder", root=tmp_path)
    with pytest.raises(ValueError, match="at least 2"):
        datasets.load("image_folder", root=tmp_path / "train" / "a")


@pytest.mark.parametrize("values", [(0, 255), (0, 1, 2)])
def test_segmentation_folder(tmp_path: Path, values: tuple[int, ...]) -> None:
    masks = [RNG.choice(np.array(values, dtype=np.uint8), (9, 7)) for _ in range(20)]
    for number, mask in enumerate(masks):
        save(tmp_path / "images" / f"{number:02d}.jpg", random_pixels(9, 7, 3))
        save(tmp_path / "masks" / f"{number:02d}.png", mask)
    data = datasets.load("segmentation_folder", root=tmp_path, channels=1, validation=0)
    assert (data.task, data.in_channels, data.num_classes) == ("segmentation", 1, len(values))
    together = sorted(t.numpy().tobytes() for t in [*data.train.targets, *data.test.targets])
    expected = [(m == 255).astype(np.int64) if 255 in values else m.astype(np.int64) for m in masks]
    assert together == sorted(mask.tobytes() for mask in expected)
    wide = datasets.load("segmentation_folder", root=tmp_path, image_size=(18, 14))
    assert wide.image_size == (18, 14)
    assert set(wide.train.targets.unique().tolist()) == set(range(len(values)))  # no value between two classes
    (tmp_path / "masks" / "03.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 20 pictures have no mask.*03.jpg"):
        datasets.load("segmentation_folder", root=tmp_path)


def test_lgg_mri_splits_by_patient(tmp_path: Path) -> None:
    for patient in range(10):
        for number in range(3):
            stem = tmp_path / "kaggle_3m" / f"TCGA_{patient}" / f"TCGA_{patient}_{number}"
            save(stem.with_suffix(".tif"), np.full((8, 8, 3), patient, dtype=np.uint8))
            save(stem.with_name(f"{stem.name}_mask.tif"), np.eye(8, dtype=np.uint8) * 255)
    data = datasets.load("lgg_mri", root=tmp_path)
    assert (len(data.train), len(data.validation), len(data.test)) == (21, 3, 6)
    seen = [set(split.images[:, 0, 0, 0].tolist()) for split in (data.train, data.validation, data.test)]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 10
    assert torch.equal(data.train.targets[0], torch.eye(8).long())


def write_volumes(path: Path, **replaced: Any) -> None:
    arrays: dict[str, Any] = {"case_ids": np.arange(10)}
    for case in range(10):
        label = np.zeros((20, 30, 24), dtype=np.uint8)
        label[5:15, 10:20, 8:16] = 1 + case % 2
        arrays[f"image_{case:03d}"] = np.full(label.shape, case, dtype=np.uint8)
        arrays[f"label_{case:03d}"] = label
    np.savez(path, **(arrays | replaced))


def test_hippocampus_slices_are_split_by_case_with_the_stated_share_of_empty_ones(tmp_path: Path) -> None:
    write_volumes(tmp_path / "hippocampus_uint8.npz")
    data = datasets.load("hippocampus", root=tmp_path, empty_share=0.2)
    assert (data.image_size, data.num_classes, data.in_channels) == ((48, 64), 3, 1)
    # 10 slices with foreground per case, and 0.2 / 0.8 * 10, rounded half up, without: 3
    assert (len(data.train), len(data.validation), len(data.test)) == (7 * 13, 13, 2 * 13)
    cases = [set(split.groups.tolist()) for split in (data.train, data.validation, data.test)]  # type: ignore[union-attr]
    assert sum(map(len, cases)) == len(set.union(*cases)) == 10
    assert all(int(i.max()) == int(g) for i, g in zip(data.test.images, data.test.groups, strict=True))  # type: ignore[arg-type]
    empty = ~data.train.targets.flatten(1).any(1)
    assert int(empty.sum()) == 7 * 3
    # z (24) is filled to 48 from row 12, y (30) to 64 from column 17
    mask = data.train.targets[~empty][0] > 0
    assert mask.nonzero().min(0).values.tolist() == [12 + 8, 17 + 10]
    assert mask.nonzero().max(0).values.tolist() == [12 + 15, 17 + 19]
    axial = datasets.load("hippocampus", root=tmp_path, plane="axial", empty_share=0)
    assert len(axial.train) + len(axial.validation) + len(axial.test) == 10 * 8


def test_centred_cuts_and_fills() -> None:
    slices = np.arange(1, 1 + 2 * 5 * 2, dtype=np.uint8).reshape(2, 5, 2)
    found = centred(slices, (3, 4))
    assert found.shape == (2, 3, 4)
    assert np.array_equal(found[:, :, 1:3], slices[:, 1:4])
    assert not found[:, :, [0, 3]].any()


@pytest.mark.parametrize(
    ("replaced", "arguments", "message"),
    [
        ({}, {"plane": "oblique"}, "plane must be one of"),
        ({}, {"empty_share": 1.0}, "empty_share"),
        ({"label_004": np.zeros((2, 2, 2), dtype=np.uint8)}, {}, "case 004"),
        ({"label_004": np.full((20, 30, 24), 3, dtype=np.uint8)}, {}, "label 3"),
        ({"case_ids": np.array([55])}, {}, "image_055"),
    ],
)
def test_wrong_volumes_are_named(tmp_path: Path, replaced: Any, arguments: Any, message: str) -> None:
    write_volumes(tmp_path / "hippocampus_uint8.npz", **replaced)
    with pytest.raises(ValueError, match=message):
        datasets.load("hippocampus", root=tmp_path, **arguments)


def test_real_hippocampus_and_pneumonia(shared_data: Path) -> None:
    data = datasets.load("npz", root=shared_data / "pneumoniamnist")
    assert (len(data.train), len(data.validation), len(data.test)) == (4708, 524, 624)
    assert torch.bincount(data.train.targets).tolist() == [1214, 3494]
    assert data.mean[0] == pytest.approx(0.5719, abs=5e-5)
    assert data.std[0] == pytest.approx(0.1684, abs=5e-5)
    assert any("validation" in note for note in data.notes)
    slices = datasets.load("hippocampus", root=shared_data / "msd_hippocampus")
    assert slices.image_size == (48, 64)
    cases = [set(split.groups.tolist()) for split in (slices.train, slices.validation, slices.test)]  # type: ignore[union-attr]
    assert sum(map(len, cases)) == len(set.union(*cases)) == 260
    assert set(slices.test.targets.unique().tolist()) == {0, 1, 2}

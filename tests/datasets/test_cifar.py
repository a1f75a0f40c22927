"""CIFAR in its four forms, and what a damaged or hostile file leads to."""

from __future__ import annotations

import csv
import io
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.datasets.make_files import cifar_rows, write_binary_cifar10, write_python_cifar10
from trimtab import datasets
from trimtab.datasets.restricted_pickle import read_pickle


def as_images(rows: Any) -> torch.Tensor:
    """The documented layout, by hand: 1,024 red values, 1,024 green, 1,024 blue, each row by row."""
    images = torch.empty(len(rows), 3, 32, 32, dtype=torch.uint8)
    for number, row in enumerate(rows):
        for channel in range(3):
            for y in range(32):
                begin = channel * 1024 + y * 32
                images[number, channel, y] = torch.from_numpy(row[begin : begin + 32].copy())
    return images


@pytest.mark.parametrize("write", [write_binary_cifar10, write_python_cifar10])
def test_batches_hold_the_images_written(tmp_path: Path, write: Any) -> None:
    written = write(tmp_path)
    data = datasets.load("cifar10", root=tmp_path, validation=0)
    assert torch.equal(data.train.images, torch.cat([as_images(rows) for rows, _ in written[:5]]))
    assert torch.equal(data.train.targets, torch.from_numpy(np.concatenate([labels for _, labels in written[:5]])))
    assert torch.equal(data.test.images, as_images(written[5][0]))
    assert (len(data.validation), data.classes[3], data.image_size, data.in_channels) == (0, "cat", (32, 32), 3)


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_pickles_of_every_old_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    array = np.asfortranarray(np.arange(6, dtype=np.int32).reshape(2, 3))
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps({"data": array, "text": "x", "list": [1, 2.5]}, protocol=protocol))
    found = read_pickle(path)
    assert np.array_equal(found["data"], array)
    assert found["list"] == [1, 2.5]


def test_the_folder_itself_may_be_the_root(tmp_path: Path) -> None:
    write_binary_cifar10(tmp_path)
    assert len(datasets.load("cifar10", root=tmp_path / "cifar-10-batches-bin").train) == 90


def test_cifar100_takes_the_fine_label(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name, count in (("train.bin", 300), ("test.bin", 100)):
        rows, fine = cifar_rows(count, 100, count)
        coarse = np.full(count, 7)
        content = np.concatenate([coarse[:, None], fine[:, None], rows], axis=1).astype(np.uint8)
        (folder / name).write_bytes(content.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"kind{i}" for i in range(100)), encoding="utf-8")
    data = datasets.load("cifar100", root=tmp_path)
    assert data.test.targets.tolist() == list(range(100))
    assert data.classes[99] == "kind99"
    folder = tmp_path / "py" / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, count in (("train", 300), ("test", 100)):
        rows, fine = cifar_rows(count, 100, count)
        (folder / name).write_bytes(
            pickle.dumps({"data": rows, "fine_labels": fine.tolist(), "coarse_labels": [0] * count}, protocol=2)
        )
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"sort{i}" for i in range(100)]}, protocol=2))
    same = datasets.load("cifar100", root=tmp_path / "py")
    assert torch.equal(same.train.images, data.train.images)
    assert same.classes[0] == "sort0"


def write_shard(path: Path, count: int, seed: int) -> Any:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(count) % 10
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["index", "strip", "row", "label", "class", "source_file"])
    with zipfile.ZipFile(path, "w") as archive:
        for strip in range(count // 10):
            picture = io.BytesIO()
            part = pixels[strip * 10 : strip * 10 + 10].reshape(-1, 32, 3)
            Image.fromarray(part).save(picture, "WEBP", lossless=True, exact=True)
            archive.writestr(f"strip_{strip:02d}.webp", picture.getvalue())
            for row in range(10):
                writer.writerow([strip * 10 + row, strip, row, labels[strip * 10 + row], "", "x.png"])
        archive.writestr("labels.csv", table.getvalue())
    return pixels, labels


def test_zipped_shards_and_npz_hold_the_images_written(tmp_path: Path) -> None:
    pixels, labels = write_shard(tmp_path / "cifar10_train_00.zip", 30, 0)
    test_pixels, test_labels = write_shard(tmp_path / "cifar10_test_00.zip", 20, 1)
    shards = datasets.load("cifar10", root=tmp_path, validation=0)
    assert np.array_equal(shards.train.images.permute(0, 2, 3, 1).numpy(), pixels)
    assert shards.train.targets.tolist() == labels.tolist()
    file = tmp_path / "all.npz"
    np.savez(file, train_images=pixels, train_labels=labels, test_images=test_pixels, test_labels=test_labels)
    archive = datasets.load("cifar10", root=file, validation=0)
    assert torch.equal(archive.train.images, shards.train.images)
    assert torch.equal(archive.test.images, shards.test.images)
    assert archive.mean == shards.mean


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_pickle_is_refused_by_name_and_not_run(tmp_path: Path) -> None:
    write_python_cifar10(tmp_path)
    marker = tmp_path / "was-run"
    path = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    path.write_bytes(pickle.dumps({b"data": Hostile(marker)}, protocol=2))
    with pytest.raises(ValueError, match=r"data_batch_3.*refused (posix|nt)\.system"):
        datasets.load("cifar10", root=tmp_path)
    assert not marker.exists()
    pickle.loads(path.read_bytes())  # the file is hostile indeed
    assert marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"data": np.array([object], dtype=object)}, "refused"),
        ({"data": np.zeros(2, dtype=[("a", "i4")])}, "refused dtype"),
        ({"data": bytearray(b"x")}, r"refused (__builtin__|builtins)\.bytearray"),
        ([1, 2], "must hold a dictionary, got list"),
    ],
)
def test_other_contents_of_a_pickle_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(ValueError, match=message) as caught:
        read_pickle(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [1, 100, 3073, 0.5])
def test_a_pickle_cut_short_is_named(tmp_path: Path, cut: float) -> None:
    write_python_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-py" / "data_batch_2"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut) if cut < 1 else len(content) - int(cut)])
    with pytest.raises(ValueError, match="data_batch_2"):
        datasets.load("cifar10", root=tmp_path)


@pytest.mark.parametrize(
    ("keep", "message"), [(5000, "multiple of a record"), (0, "multiple"), (3073 * 7, "cut short")]
)
def test_a_binary_batch_cut_short_is_named(tmp_path: Path, keep: int, message: str) -> None:
    write_binary_cifar10(tmp_path)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_4.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=message):
        datasets.load("cifar10", root=tmp_path)


def test_labels_out_of_range_missing_batches_and_no_root(tmp_path: Path) -> None:
    write_binary_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-bin"
    path = folder / "data_batch_1.bin"
    content = bytearray(path.read_bytes())
    content[0] = 10
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"data_batch_1.bin: labels must lie in 0..9, found 0..10"):
        datasets.load("cifar10", root=tmp_path)
    content[0] = 0
    path.write_bytes(bytes(content))
    (folder / "data_batch_5.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"data_batch_5.bin"):
        datasets.load("cifar10", root=tmp_path)
    with pytest.raises(ValueError, match=r"needs root: .*cifar-10-batches-bin"):
        datasets.load("cifar10")
    with pytest.raises(FileNotFoundError, match=r"nothing usable.*cifar\.html"):
        datasets.load("cifar10", root=folder.parent / "..")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        datasets.load("cifar10", root=tmp_path / "nowhere")


def test_damaged_archives_are_named(tmp_path: Path) -> None:
    write_shard(tmp_path / "cifar10_test_00.zip", 10, 0)
    (tmp_path / "cifar10_train_00.zip").write_bytes((tmp_path / "cifar10_test_00.zip").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"cifar10_train_00.zip is damaged"):
        datasets.load("cifar10", root=tmp_path)
    file = tmp_path / "x.npz"
    file.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"x.npz is damaged"):
        datasets.load("cifar10", root=file)
    np.savez(file, train_images=np.array([{}], dtype=object))
    with pytest.raises(ValueError, match=r"x.npz is damaged.*allow_pickle"):
        datasets.load("cifar10", root=file)


def test_real_cifar10_is_balanced_and_has_the_published_statistics(shared_data: Path) -> None:
    data = datasets.load("cifar10", root=shared_data / "cifar10", limit_train=1000)
    assert torch.bincount(data.train.targets).tolist() == [100] * 10
    assert len(set(torch.bincount(data.validation.targets).tolist())) == 1
    assert len(data.test) == 5000
    whole = torch.cat([data.train.images, data.validation.images]).double().div(255).mean((0, 2, 3))
    torch.testing.assert_close(whole, torch.tensor([0.4914, 0.4822, 0.4465], dtype=torch.float64), atol=0.01, rtol=0)

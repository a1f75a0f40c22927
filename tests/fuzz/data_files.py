"""Data sets: IDX, MATLAB, NumPy, CIFAR's three forms, pictures."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

from tests.datasets.make_files import idx_bytes, write_binary_cifar10, write_python_cifar10
from tests.fuzz.running import Kind
from trimtab import datasets
from trimtab.datasets.idx import read_idx
from trimtab.datasets.mat_file import read_mat
from trimtab.datasets.pictures import read_mask, read_picture
from trimtab.datasets.restricted_pickle import read_pickle

RNG = np.random.default_rng(0)


def _idx(folder: Path) -> Path:
    file = folder / "train-images-idx3-ubyte"
    file.write_bytes(idx_bytes(RNG.integers(0, 255, (4, 6, 5))))
    return file


def _idx_gz(folder: Path) -> Path:
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(gzip.compress(idx_bytes(RNG.integers(0, 255, (4, 6, 5))), mtime=0))
    return file


def _gzip(content: bytes) -> bytes:
    return gzip.compress(content, 1, mtime=0)


def _hippocampus(folder: Path) -> Path:
    file = folder / "hippocampus_uint8.npz"
    label = np.zeros((6, 5, 4), dtype=np.uint8)
    label[1:5, 1:3, 1:3] = 2
    arrays: dict[str, Any] = {"case_ids": np.arange(4)}
    for case in range(4):
        arrays |= {f"image_{case:03d}": label * 90, f"label_{case:03d}": label}
    np.savez(file, **arrays)
    return file


def _cut_slices(data: Any) -> None:
    for split in (data.train, data.test):
        assert tuple(split.images.shape[1:]) == (1, 48, 64)
        assert int(split.targets.min()) >= 0
        assert int(split.targets.max()) < 3


def _svhn(compressed: bool) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        written = {
            "X": RNG.integers(0, 255, (32, 32, 3, 2), dtype=np.uint8),
            "y": np.array([[1], [10]], dtype=np.uint8),
        }
        for name in ("test_32x32.mat", "train_32x32.mat"):
            savemat(folder / name, written, do_compression=compressed)
        return folder / "train_32x32.mat"

    return prepare


def _labels_in_range(data: Any) -> None:
    for split in (data.train, data.test):
        assert split is None or (int(split.targets.min()) >= 0 and int(split.targets.max()) < data.num_classes)


def _mat(folder: Path) -> Path:
    file = folder / "a.mat"
    savemat(file, {"other": "text", "X": np.arange(24.0).reshape(2, 3, 4), "y": np.arange(3, dtype=np.uint8)})
    return file


def _npz(folder: Path) -> Path:
    images, labels = RNG.integers(0, 255, (40, 4, 4), dtype=np.uint8), np.arange(40) % 2
    np.savez(
        folder / "set.npz", train_images=images, train_labels=labels, test_images=images[:8], test_labels=labels[:8]
    )
    return folder / "set.npz"


def _members(content: bytes) -> bytes:
    """The members of a zip one after the other, so that damage does not stop at their check sums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    head = json.dumps([[name, len(member)] for name, member in members]).encode()
    return len(head).to_bytes(4, "little") + head + b"".join(member for _, member in members)


def _zip(content: bytes) -> bytes:
    """The zip of damaged members; a damaged table of them is left out."""
    stream = io.BytesIO()
    size = int.from_bytes(content[:4], "little")
    try:
        members = json.loads(content[4 : 4 + size])
        at = 4 + size
        with zipfile.ZipFile(stream, "w") as archive:
            for name, length in members:
                archive.writestr(name, content[at : at + length])
                at += length
    except (ValueError, TypeError, AttributeError, UnicodeError):
        return content
    return stream.getvalue()


def _cifar_binary(folder: Path) -> Path:
    write_binary_cifar10(folder, 10)
    return folder / "cifar-10-batches-bin" / "data_batch_2.bin"


def _pickle(folder: Path) -> Path:
    write_python_cifar10(folder, 10)
    return folder / "cifar-10-batches-py" / "data_batch_1"


def _shard(folder: Path) -> Path:
    for split in ("train", "test"):
        stream = io.BytesIO()
        Image.fromarray(RNG.integers(0, 255, (64, 32, 3), dtype=np.uint8)).save(stream, "WEBP", lossless=True)
        with zipfile.ZipFile(folder / f"cifar10_{split}_00.zip", "w") as archive:
            archive.writestr(
                "labels.csv", "strip,row,label,class\n" + "".join(f"0,{n % 2},{n},c{n}\n" for n in range(10))
            )
            archive.writestr("strip_00.webp", stream.getvalue())
    return folder / "cifar10_train_00.zip"


def _picture(suffix: str, mode: str) -> Callable[[Path], Path]:
    def prepare(folder: Path) -> Path:
        file = folder / f"a.{suffix}"
        shape = (9, 7, 3) if mode == "RGB" else (9, 7)
        Image.fromarray(RNG.integers(0, 2, shape, dtype=np.uint8), mode).save(file)
        return file

    return prepare


def _uint8(found: Any) -> None:
    assert found.dtype == np.uint8
    assert found.size < 10**9


KINDS = [
    Kind("idx", _idx, lambda folder: read_idx(folder / "train-images-idx3-ubyte", 3)),
    Kind("idx-gz", _idx_gz, lambda folder: read_idx(folder / "train-images-idx3-ubyte.gz", 3)),
    Kind(
        "idx-gz-content", _idx_gz, lambda folder: read_idx(folder / "train-images-idx3-ubyte.gz", 3),
        wrap=_gzip, unwrap=gzip.decompress,
    ),
    Kind("mat", _mat, lambda folder: read_mat(folder / "a.mat", ("X", "y"))),
    Kind("svhn", _svhn(False), lambda folder: datasets.load("svhn", root=folder, validation=0), _labels_in_range),
    Kind("svhn-compressed", _svhn(True), lambda folder: datasets.load("svhn", root=folder, validation=0), _labels_in_range),
    Kind("npz", _npz, lambda folder: datasets.load("npz", root=folder, validation=0), _labels_in_range),
    Kind(
        "npz-members", _npz, lambda folder: datasets.load("npz", root=folder, validation=0), _labels_in_range,
        wrap=_zip, unwrap=_members, short=300,
    ),
    Kind("hippocampus", _hippocampus, lambda folder: datasets.load("hippocampus", root=folder, validation=0), _cut_slices),
    Kind(
        "hippocampus-members", _hippocampus, lambda folder: datasets.load("hippocampus", root=folder, validation=0),
        _cut_slices, wrap=_zip, unwrap=_members, short=200,
    ),
    Kind(
        "cifar-binary", _cifar_binary, lambda folder: datasets.load("cifar10", root=folder, validation=0), _labels_in_range,
        short=300,
    ),
    Kind("cifar-pickle", _pickle, lambda folder: read_pickle(folder / "cifar-10-batches-py" / "data_batch_1")),
    Kind(
        "cifar-shard", _shard, lambda folder: datasets.load("cifar10", root=folder, validation=0), _labels_in_range,
        wrap=_zip, unwrap=_members, short=500,
    ),
    *(
        Kind(f"picture-{suffix}", _picture(suffix, "RGB"), lambda folder, suffix=suffix: read_picture(folder / f"a.{suffix}", 3, None), _uint8, short=500)  # noqa: E501
        for suffix in ("png", "jpg", "gif", "tif", "webp", "bmp", "ppm")
    ),
    Kind("mask-png", _picture("png", "L"), lambda folder: read_mask(folder / "a.png", None), _uint8),
]  # fmt: skip

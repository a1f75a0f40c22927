"""The IDX files of MNIST and Fashion-MNIST, compressed or not."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from trimtab.datasets.dataset import Split
from trimtab.datasets.reading import Source, image_tensor, label_tensor, require_root
from trimtab.inputs import named

FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip

UNSIGNED_BYTE = 8
MAX_VALUES = 2**31


def _parse(file: BinaryIO, path: Path, dimensions: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Header: two zeros, type, number of dimensions, then each size as a big-endian 32-bit number; then the values."""
    header = file.read(4)
    if len(header) < 4 or header[:2] != b"\0\0" or header[2] != UNSIGNED_BYTE or header[3] != dimensions:
        raise ValueError(f"{path} must be an IDX file of unsigned bytes with {dimensions} dimension(s), got {header!r}")
    shape = tuple(int(size) for size in np.frombuffer(file.read(4 * dimensions), dtype=">u4"))
    if len(shape) != dimensions or not 0 < math.prod(shape) < MAX_VALUES:
        raise ValueError(f"{path} has an impossible shape {shape}")
    values = file.read(math.prod(shape) + 1)
    if len(values) != math.prod(shape):
        compared = "more" if len(values) > math.prod(shape) else f"{len(values)}"
        raise ValueError(f"{path} says {shape}, that is {math.prod(shape)} values, but holds {compared}")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)


def read_idx(path: Path, dimensions: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The array of unsigned bytes in an IDX file; a name that ends in .gz is decompressed, never beyond its header.

    Raises:
        ValueError: the file is damaged, cut short, too long, or has another type or number of dimensions.
    """
    with named(path), path.open("rb") as raw:
        if path.suffix != ".gz":
            return _parse(raw, path, dimensions)
        with gzip.GzipFile(fileobj=raw) as compressed:
            return _parse(compressed, path, dimensions)  # type: ignore[arg-type]


def _file(root: Path, stem: str, dimensions: int, name: str) -> Path:
    tail = f"idx{dimensions}-ubyte"
    for found in (f"{stem}-{tail}", f"{stem}-{tail}.gz", f"{stem}.{tail}", f"{stem}.{tail}.gz"):
        if (root / found).is_file():
            return root / found
    raise FileNotFoundError(f"data set {name!r}: {root} holds no {stem}-{tail}[.gz]")


def _split(root: Path, stem: str, name: str) -> Split:
    images_path, labels_path = _file(root, f"{stem}-images", 3, name), _file(root, f"{stem}-labels", 1, name)
    images, labels = read_idx(images_path, 3), read_idx(labels_path, 1)
    if len(images) != len(labels):
        raise ValueError(f"{images_path} holds {len(images)} images, {labels_path} {len(labels)} labels")
    return Split(image_tensor(images, images_path), label_tensor(labels, 10, labels_path))


def _read(root: Path | None, name: str, classes: tuple[str, ...], origin: str) -> Source:
    root = require_root(
        root, name, f"a folder that holds train-images-idx3-ubyte[.gz] and its three companions, from {origin}"
    )
    return Source(name, _split(root, "train", name), classes, test=_split(root, "t10k", name))


def read_mnist(root: Path | None) -> Source:
    """28 x 28 grey, digits 0..9, 60,000 training and 10,000 test images (LeCun et al. 1998)."""
    return _read(root, "mnist", tuple(map(str, range(10))), "http://yann.lecun.com/exdb/mnist/")


def read_fashion_mnist(root: Path | None) -> Source:
    """28 x 28 grey, 10 kinds of clothing, 60,000 training and 10,000 test images (Xiao et al. 2017, arXiv 1708.07747)."""
    return _read(root, "fashion_mnist", FASHION, "https://github.com/zalandoresearch/fashion-mnist")

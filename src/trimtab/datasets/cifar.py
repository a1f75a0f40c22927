"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in each of the forms in which they are handed round."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.datasets.dataset import Split
from trimtab.datasets.reading import Source, image_tensor, joined, label_tensor, require_root
from trimtab.datasets.restricted_pickle import read_pickle
from trimtab.inputs import named, utf8

TEN = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Form:
    """Names that differ between the two data sets; `label_bytes` precede each image of the binary files."""

    name: str
    classes: int
    label_bytes: int
    binary: str
    binary_train: tuple[str, ...]
    binary_test: str
    python: str
    python_train: tuple[str, ...]
    python_test: str
    label_key: str
    names_file: str
    names_key: str


_CIFAR10 = _Form(
    "cifar10", 10, 1,
    "cifar-10-batches-bin", tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin",
    "cifar-10-batches-py", tuple(f"data_batch_{i}" for i in range(1, 6)), "test_batch",
    "labels", "batches.meta", "label_names",
)  # fmt: skip
_CIFAR100 = _Form(
    "cifar100", 100, 2,
    "cifar-100-binary", ("train.bin",), "test.bin",
    "cifar-100-python", ("train",), "test",
    "fine_labels", "meta", "fine_label_names",
)  # fmt: skip


def _split(rows: np.ndarray[Any, np.dtype[np.uint8]], labels: Any, form: _Form, path: Path) -> Split:
    """Rows of 3,072 values: the red plane, the green, the blue."""
    if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != PIXELS:
        raise ValueError(f"{path}: images must be uint8 of shape (N, {PIXELS}), got {rows.dtype} {rows.shape}")
    targets = label_tensor(np.asarray(labels), form.classes, path)
    if len(targets) != len(rows) or not len(rows):
        raise ValueError(f"{path} holds {len(rows)} images and {len(targets)} labels")
    return Split(torch.from_numpy(rows.reshape(-1, 3, 32, 32).copy()), targets)


def _binary(path: Path, form: _Form) -> Split:
    with named(path):
        content = np.frombuffer(path.read_bytes(), dtype=np.uint8)
    record = form.label_bytes + PIXELS
    if not len(content) or len(content) % record:
        raise ValueError(f"{path} has {len(content)} bytes, which is no multiple of a record of {record}: cut short?")
    content = content.reshape(-1, record)
    return _split(content[:, form.label_bytes :], content[:, form.label_bytes - 1], form, path)


def _python(path: Path, form: _Form) -> Split:
    with named(path):
        found = read_pickle(path)
    for key in ("data", form.label_key):
        if key not in found:
            raise ValueError(f"{path} has no {key!r}; it holds {sorted(found)}")
    return _split(np.asarray(found["data"]), found[form.label_key], form, path)


def _batches(folder: Path, names: Sequence[str], form: _Form, read: Callable[[Path, _Form], Split]) -> Split:
    parts = [read(folder / name, form) for name in names]
    sizes = {len(part) for part in parts}
    if len(sizes) > 1:
        raise ValueError(
            f"{folder}: the training batches hold {[len(part) for part in parts]} images; one is cut short"
        )
    return joined(parts)


def _label_rows(archive: zipfile.ZipFile) -> list[dict[str, str]]:
    with archive.open("labels.csv") as binary:
        return list(csv.DictReader(io.TextIOWrapper(binary, "utf-8")))


def _label_key(rows: list[dict[str, str]]) -> str:
    return "label" if rows and "label" in rows[0] else "fine_label"


def _shard(path: Path, form: _Form) -> Split:
    """A zip with labels.csv (strip, row, label) and lossless strips of images stacked top to bottom."""
    from PIL import Image

    images, labels = [], []
    strips: dict[int, np.ndarray[Any, np.dtype[np.uint8]]] = {}
    with named(path), zipfile.ZipFile(path) as archive:
        rows = _label_rows(archive)
        key = _label_key(rows)
        for row in rows:
            number = int(row["strip"])
            if number not in strips:
                with Image.open(io.BytesIO(archive.read(f"strip_{number:02d}.webp")), formats=["WEBP"]) as strip:
                    strips[number] = np.asarray(strip.convert("RGB")).reshape(-1, 32, 32, 3)
            images.append(strips[number][int(row["row"])])
            labels.append(int(row[key]))
        pixels = np.stack(images)
    return Split(image_tensor(pixels, path), label_tensor(np.array(labels), form.classes, path))


def _archive(path: Path, form: _Form) -> tuple[Split, Split]:
    """One .npz: train_images (N, 32, 32, 3) uint8, train_labels (N,), test_images, test_labels."""
    parts = []
    with named(path), np.load(path, allow_pickle=False) as arrays:
        for split in ("train", "test"):
            images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
            if images.shape[1:] != (32, 32, 3) or len(images) != len(labels):
                raise ValueError(f"{path}: {split}_images {images.shape} and {split}_labels {labels.shape} do not fit")
            parts.append(Split(image_tensor(images, path), label_tensor(labels, form.classes, path)))
    return parts[0], parts[1]


def _found_in(root: Path, form: _Form) -> tuple[Split, Split] | None:
    if root.is_file():
        return _archive(root, form) if root.suffix == ".npz" else None
    for folder in (root / form.binary, root):
        if (folder / form.binary_train[0]).is_file():
            return _batches(folder, form.binary_train, form, _binary), _binary(folder / form.binary_test, form)
    for folder in (root / form.python, root):
        if (folder / form.python_train[0]).is_file():
            return _batches(folder, form.python_train, form, _python), _python(folder / form.python_test, form)
    train, test = (sorted(root.glob(f"{form.name}_{split}_*.zip")) for split in ("train", "test"))
    if train and test:
        return joined([_shard(path, form) for path in train]), joined([_shard(path, form) for path in test])
    archives = sorted(root.glob("*.npz"))
    return _archive(archives[0], form) if len(archives) == 1 else None


def _class_names(root: Path, form: _Form) -> tuple[str, ...]:
    if form.classes == 10:
        return TEN
    for folder in (root / form.python, root):
        if (folder / form.names_file).is_file():
            names = read_pickle(folder / form.names_file).get(form.names_key, [])
            if len(names) == form.classes:
                return tuple(name.decode("latin1") if isinstance(name, bytes) else str(name) for name in names)
    for path in (root / form.binary / "fine_label_names.txt", root / "fine_label_names.txt"):
        if path.is_file():
            lines = utf8(path).split()
            if len(lines) == form.classes:
                return tuple(lines)
    for path in sorted(root.glob(f"{form.name}_test_*.zip")):
        with named(path), zipfile.ZipFile(path) as archive:
            rows = _label_rows(archive)
            found = {int(row[_label_key(rows)]): row["class"] for row in rows if row.get("class")}
        if sorted(found) == list(range(form.classes)):
            return tuple(found[number] for number in range(form.classes))
    return tuple(f"class {number}" for number in range(form.classes))


def _read(root: Path | None, form: _Form) -> Source:
    expected = (
        f"a folder that holds {form.binary}/ (binary version), {form.python}/ (Python version), or "
        f"{form.name}_train_*.zip and {form.name}_test_*.zip; or an .npz with train_images (N, 32, 32, 3), train_labels, "
        "test_images and test_labels. The first two are at https://www.cs.toronto.edu/~kriz/cifar.html"
    )
    root = require_root(root, form.name, expected)
    found = _found_in(root, form)
    if found is None:
        raise FileNotFoundError(f"data set {form.name!r}: nothing usable in {root}; root must be {expected}")
    return Source(form.name, found[0], _class_names(root, form), test=found[1])


def read_cifar10(root: Path | None) -> Source:
    """32 x 32 RGB, 10 classes, 50,000 training and 10,000 test images (or as many as the files hold).

    Python batches are read by `read_pickle`, which runs nothing from the file.
    """
    return _read(root, _CIFAR10)


def read_cifar100(root: Path | None) -> Source:
    """32 x 32 RGB, 100 fine classes, 50,000 training and 10,000 test images (or as many as the files hold)."""
    return _read(root, _CIFAR100)

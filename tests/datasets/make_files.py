"""Small files in the forms in which data sets are shipped."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def cifar_rows(count: int, classes: int, seed: int) -> tuple[Array, Array]:
    """Rows of 3,072 bytes and labels; every class occurs count / classes times."""
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3072), dtype=np.uint8), np.arange(count) % classes


def write_binary_cifar10(root: Path, per_batch: int = 20) -> list[tuple[Array, Array]]:
    folder = root / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    written = []
    for seed, name in enumerate([f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]):
        rows, labels = cifar_rows(per_batch, 10, seed)
        (folder / name).write_bytes(np.concatenate([labels[:, None].astype(np.uint8), rows], axis=1).tobytes())
        written.append((rows, labels))
    return written


def write_python_cifar10(root: Path, per_batch: int = 20, protocol: int = 2) -> list[tuple[Array, Array]]:
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    written = []
    for seed, name in enumerate([f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]):
        rows, labels = cifar_rows(per_batch, 10, seed)
        content = {b"data": rows, b"labels": labels.tolist(), b"batch_label": b"x", b"filenames": [b"a.png"]}
        (folder / name).write_bytes(pickle.dumps(content, protocol=protocol))
        written.append((rows, labels))
    return written


def idx_bytes(array: Array) -> bytes:
    header = bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(root: Path, compressed: bool, count: int = 40) -> dict[str, Array]:
    root.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    written = {}
    for stem, number in (("train", count), ("t10k", count // 2)):
        written[f"{stem}-images"] = generator.integers(0, 256, (number, 28, 28), dtype=np.uint8)
        written[f"{stem}-labels"] = np.arange(number) % 10
    for name, array in written.items():
        content = idx_bytes(array)
        if compressed:
            (root / f"{name}-idx{array.ndim}-ubyte.gz").write_bytes(gzip.compress(content))
        else:
            (root / f"{name}-idx{array.ndim}-ubyte").write_bytes(content)
    return written

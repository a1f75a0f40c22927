"""One .npz file of images and labels, with the keys of MedMNIST (Yang et al. 2023, arXiv 2110.14795)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trimtab.datasets.dataset import Split
from trimtab.datasets.reading import (
    Source,
    duplicates,
    image_tensor,
    label_tensor,
    require_root,
)
from trimtab.inputs import named

MOST_CLASSES = 100_000
"""Above it a label is taken for damage [ours]."""
KEYS = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}


def _split(arrays: np.lib.npyio.NpzFile, prefix: str, path: Path) -> Split:
    images, labels = arrays[f"{prefix}_images"], arrays[f"{prefix}_labels"]
    if len(images) != len(labels) or not len(images):
        raise ValueError(f"{path}: {prefix}_images holds {len(images)} images, {prefix}_labels {len(labels)} labels")
    return Split(image_tensor(images, path), label_tensor(labels, None, path))


def read_npz(root: Path | None, classes: str = "") -> Source:
    """train_images (N, H, W) or (N, H, W, C) uint8 and train_labels (N,) or (N, 1); also val_ and test_ if shipped.

    A shipped validation split is kept as it is; training images that occur in it or in the test split are counted in
    the notes, not removed. The data set is named after the file.

    Args:
        root: the .npz file, or a folder that holds exactly one.
        classes: names of the classes, separated by commas; default their numbers.
    """
    expected = "an .npz file with train_images, train_labels and, if there are any, val_* and test_*"
    path = require_root(root, "npz", expected)
    if path.is_dir():
        found = sorted(path.glob("*.npz"))
        if len(found) != 1:
            raise FileNotFoundError(
                f"data set 'npz': {path} holds {len(found)} .npz files, not 1; root must be {expected}"
            )
        path = found[0]
    splits: dict[str, Split] = {}
    with named(path), np.load(path, allow_pickle=False) as arrays:
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise ValueError("it is not a zip of arrays")
        for name, prefixes in KEYS.items():
            for prefix in prefixes:
                if f"{prefix}_images" in arrays:
                    splits[name] = _split(arrays, prefix, path)
                    break
    if "train" not in splits:
        raise ValueError(f"{path} has no train_images; root must be {expected}")
    count = 1 + max(int(split.targets.max()) for split in splits.values())
    if count > MOST_CLASSES:
        raise ValueError(f"{path}: labels reach {count - 1}; more than {MOST_CLASSES:,} classes are not read")
    names = tuple(part.strip() for part in classes.split(",")) if classes else tuple(map(str, range(count)))
    if len(names) < count:
        raise ValueError(f"{path} holds {count} classes, but classes names {len(names)}: {names}")
    notes = []
    for other in ("validation", "test"):
        if other in splits and (same := duplicates(splits["train"], splits[other])):
            notes.append(f"{same} training images also occur in the {other} split, byte for byte; kept as shipped")
    return Source(path.stem, splits["train"], names, splits.get("validation"), splits.get("test"), tuple(notes))

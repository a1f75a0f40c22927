"""Street View House Numbers, cropped digits (Netzer et al. 2011), from the .mat files as its authors ship them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from trimtab.datasets.dataset import Split
from trimtab.datasets.mat_file import read_mat
from trimtab.datasets.reading import Source, joined, label_tensor, require_root
from trimtab.inputs import named


def _mat(path: Path) -> Split:
    """X (32, 32, 3, N) uint8 and y (N, 1) with 1..10, where 10 stands for the digit 0."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; it is at http://ufldl.stanford.edu/housenumbers/")
    with named(path):
        found = read_mat(path, ("X", "y"))
        images, labels = found["X"], np.asarray(found["y"]).reshape(-1)
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[:3] != (32, 32, 3):
            raise ValueError(f"X must be uint8 (32, 32, 3, N), got {images.dtype} {images.shape}")
        if len(labels) != images.shape[3] or not len(labels):
            raise ValueError(f"{images.shape[3]} images and {len(labels)} labels")
        if not np.isin(labels, np.arange(1, 11)).all():
            raise ValueError(f"y must hold whole numbers in 1..10, found {np.setdiff1d(labels, np.arange(1, 11))[:5]}")
    targets = label_tensor(labels.astype(np.int64) % 10, 10, path)
    return Split(torch.from_numpy(np.ascontiguousarray(images.transpose(3, 2, 0, 1))), targets)


def read_svhn(root: Path | None, *, extra: bool = False) -> Source:
    """32 x 32 RGB, digits 0..9, 73,257 training and 26,032 test images.

    Args:
        root: folder of train_32x32.mat and test_32x32.mat.
        extra: add the 531,131 easier images of extra_32x32.mat to the training images.
    """
    root = require_root(
        root,
        "svhn",
        "a folder that holds train_32x32.mat and test_32x32.mat, from http://ufldl.stanford.edu/housenumbers/",
    )
    parts = [_mat(root / "train_32x32.mat")] + ([_mat(root / "extra_32x32.mat")] if extra else [])
    classes = tuple(str(digit) for digit in range(10))
    return Source("svhn", joined(parts), classes, test=_mat(root / "test_32x32.mat"))

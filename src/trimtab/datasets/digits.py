"""Handwritten digits that come with scikit-learn: no file and no download."""

from __future__ import annotations

from pathlib import Path

import torch

from trimtab.datasets.dataset import Split
from trimtab.datasets.reading import Source


def read_digits(root: Path | None) -> Source:
    """1,797 images of 8 x 8, grey, 10 classes (UCI "Optical Recognition of Handwritten Digits", its test part).

    Values 0..16 are scaled to 0..255 and rounded, which keeps all 17 apart [ours]. The writers are not known, so the
    split is by image. `root` is not used.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).mul(255 / 16).round().to(torch.uint8).unsqueeze(1)
    targets = torch.from_numpy(bunch.target).long()
    return Source("digits", Split(images, targets), tuple(str(digit) for digit in range(10)))

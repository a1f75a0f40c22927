"""Slices of the hippocampus MRI volumes of the Medical Segmentation Decathlon (Antonelli et al. 2022)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trimtab.checks import below_one, one_of
from trimtab.datasets.dataset import Split
from trimtab.datasets.reading import Source, require_root
from trimtab.datasets.seeds import generator
from trimtab.inputs import named

FILE = "hippocampus_uint8.npz"
PLANES = {"sagittal": (0, 2, 1), "coronal": (1, 0, 2), "axial": (2, 0, 1)}
SIZE = (48, 64)
CLASSES = ("background", "anterior", "posterior")
Volume = np.ndarray[Any, np.dtype[np.uint8]]


def centred(slices: Volume, size: tuple[int, int]) -> Volume:
    """Slices (N, h, w) cut or filled with 0 around their middle to (N, *size)."""
    for axis, wanted in zip((1, 2), size, strict=True):
        have = slices.shape[axis]
        if have > wanted:
            start = (have - wanted) // 2
            slices = np.take(slices, range(start, start + wanted), axis=axis)
        elif have < wanted:
            before = (wanted - have) // 2
            margins = [(0, 0), (0, 0), (0, 0)]
            margins[axis] = (before, wanted - have - before)
            slices = np.pad(slices, margins)
    return slices


def _kept(masks: Volume, empty_share: float, case: int) -> list[int]:
    """Which slices (N, h, w) of a case are kept: all with foreground, and so many without, drawn for this case."""
    filled = np.flatnonzero(masks.any(axis=(1, 2))).tolist()
    empty = sorted(set(range(len(masks))) - set(filled))
    count = min(len(empty), math.floor(len(filled) * empty_share / (1 - empty_share) + 0.5))
    drawn = torch.randperm(len(empty), generator=generator("hippocampus", "empty", case))[:count].tolist()
    return sorted(filled + [empty[position] for position in drawn])


def read_hippocampus(root: Path | None, plane: str = "sagittal", empty_share: float = 0.1) -> Source:
    """260 volumes of about 35 x 50 x 36 voxels of 1 mm cut into slices of 48 x 64; groups are the cases.

    Every slice with foreground is kept, and per case so many without that they are `empty_share` of its slices (or
    all there are) [ours]. Slices are filled with 0 around their middle; larger ones are cut. Sagittal and axial slices
    have the second axis across. Splits are by case.

    Args:
        root: hippocampus_uint8.npz (case_ids; image_ID and label_ID as uint8 volumes), or its folder.
        plane: "sagittal" (default), "coronal" or "axial".
        empty_share: share of slices without foreground, in [0, 1). Default 0.1.

    Raises:
        ValueError: an unknown plane, a share out of range, a damaged file, a label other than 0, 1, 2.
    """
    one_of("plane", plane, PLANES)
    below_one("empty_share", empty_share)
    expected = f"{FILE}, or the folder that holds it (the Task04 volumes as uint8 arrays; medicaldecathlon.com)"
    path = require_root(root, "hippocampus", expected)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise FileNotFoundError(f"data set 'hippocampus': {path} does not exist; root must be {expected}")
    images: list[Volume] = []
    masks: list[Volume] = []
    groups: list[int] = []
    with named(path), np.load(path, allow_pickle=False) as arrays:
        for case in arrays["case_ids"].tolist():
            key = f"{int(case):03d}"
            volume, label = arrays[f"image_{key}"], arrays[f"label_{key}"]
            if volume.dtype != np.uint8 or volume.ndim != 3 or volume.shape != label.shape:
                raise ValueError(f"case {key}: image {volume.dtype} {volume.shape}, label {label.shape}")
            if int(label.max()) >= len(CLASSES):
                raise ValueError(f"case {key}: label {int(label.max())}, allowed are 0..{len(CLASSES) - 1}")
            volume, label = (_slices(array, plane) for array in (volume, label))
            kept = _kept(label, empty_share, int(case))
            images.append(centred(volume[kept], SIZE))
            masks.append(centred(label[kept], SIZE))
            groups += [int(case)] * len(kept)
        pixels, targets = np.concatenate(images)[:, None], np.concatenate(masks).astype(np.int64)
    split = Split(torch.from_numpy(pixels), torch.from_numpy(targets), torch.tensor(groups))
    return Source("hippocampus", split, CLASSES)


def _slices(volume: Volume, plane: str) -> Volume:
    """A volume (x, y, z) as slices: sagittal (x: z by y), coronal (y: x by z), axial (z: x by y)."""
    return volume.transpose(PLANES[plane])

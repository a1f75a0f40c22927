"""Folders of pictures, one folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trimtab.checks import number
from trimtab.datasets.dataset import Split
from trimtab.datasets.pictures import pictures_in, read_picture, same_size
from trimtab.datasets.reading import Source, duplicates, label_tensor, require_root, tell_read
from trimtab.datasets.room import most_in_memory, room

SPLITS = {"train": ("train", "training"), "validation": ("val", "valid", "validation"), "test": ("test", "testing")}


def split_folders(root: Path) -> dict[str, Path]:
    """Which of train, validation and test lie as folders under `root`; all of `root` is train when none does."""
    found = {}
    for name, spellings in SPLITS.items():
        for spelling in spellings:
            if (root / spelling).is_dir():
                found[name] = root / spelling
                break
    return found if "train" in found else {"train": root}


def _class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _pixels(paths: list[Path], channels: int, size: tuple[int, int] | None, memory: float) -> Tensor:
    """The pictures, read one after the other into memory or onto disk."""
    first = read_picture(paths[0], channels, size)
    height, width, _ = first.shape
    bytes_ = len(paths) * first.size
    images = room(
        (len(paths), channels, height, width),
        on_disk=bytes_ > (memory * 1e9 if memory else most_in_memory()),
    )
    for place, path in enumerate(paths):
        picture = first if place == 0 else read_picture(path, channels, size)
        same_size([first, picture], [paths[0], path])
        images[place] = torch.from_numpy(picture.transpose(2, 0, 1).copy())
        tell_read(place + 1, len(paths))
    return images


def _split(folder: Path, classes: list[str], channels: int, size: tuple[int, int] | None, memory: float) -> Split:
    strangers = sorted(set(_class_folders(folder)) - set(classes))
    if strangers:
        raise ValueError(f"{folder} has the class folder(s) {strangers}, which the training folder has not")
    paths, labels = [], []
    for place, name in enumerate(classes):
        if (folder / name).is_dir():
            found = pictures_in(folder / name, below=True)
            paths += found
            labels += [place] * len(found)
    if not paths:
        raise ValueError(f"{folder} holds no picture in a class folder")
    return Split(_pixels(paths, channels, size, memory), label_tensor(np.array(labels), len(classes), folder))


def read_image_folder(
    root: Path | None, image_size: tuple[int, int] | None = None, channels: int = 3, memory: float = 0
) -> Source:
    """root/CLASS/*.png, or root/train/CLASS/*, root/val/CLASS/*, root/test/CLASS/*; classes in alphabetical order.

    Args:
        root: the folder.
        image_size: (height, width) to resize to; without it all pictures must have one size.
        channels: 3 (RGB) or 1 (grey).
        memory: GB of pixels of one split up to which they are kept in memory; more lie in a temporary file, from which each
            batch is read. 0: a quarter of the machine's.

    Raises:
        ValueError: a picture is damaged or of another size (it is named), or `memory` is negative.
    """
    number("memory", memory, least=0)
    root = require_root(root, "image_folder", "a folder with one folder of pictures per class, or train/, val/, test/")
    folders = split_folders(root)
    classes = _class_folders(folders["train"])
    if len(classes) < 2:
        raise ValueError(f"{folders['train']} must hold one folder per class, at least 2; found {classes}")
    splits = {name: _split(folder, classes, channels, image_size, memory) for name, folder in folders.items()}
    notes = []
    for other in ("validation", "test"):
        if other in splits and (same := duplicates(splits["train"], splits[other])):
            notes.append(f"{same} training images also occur in the {other} split, pixel for pixel; kept as shipped")
    return Source(
        root.name, splits["train"], tuple(classes), splits.get("validation"), splits.get("test"), tuple(notes)
    )

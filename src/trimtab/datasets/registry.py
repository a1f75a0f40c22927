"""The data sets by name, and the steps every one of them goes through."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.checks import below_one, hint, whole
from trimtab.datasets.catalogue import READERS
from trimtab.datasets.dataset import DataSet, Split, channel_statistics
from trimtab.datasets.reading import Source
from trimtab.datasets.splitting import balanced_index, part_off
from trimtab.lazy import at

Size = int | tuple[int, int]
TEST_FRACTION = 0.2
TEST_SEED = 0


def _resized(split: Split, size: tuple[int, int]) -> Split:
    """Images by bilinear interpolation with antialiasing, masks by the nearest pixel."""
    if not len(split) or tuple(split.images.shape[2:]) == size:
        empty = split.images.new_zeros(0, split.images.shape[1], *size)
        return split if len(split) else Split(empty, split.targets.new_zeros(0), split.groups)
    images = F.interpolate(split.images, size, mode="bilinear", antialias=True)
    targets = split.targets
    if targets.ndim > 1:
        targets = F.interpolate(targets[:, None].double(), size, mode="nearest-exact")[:, 0].long()
    return Split(images, targets, split.groups)


def _pair(size: Size | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise ValueError(f"image_size must be 1 or more, got {size}")
    return height, width


def _read(name: str, root: Path | None, size: tuple[int, int] | None, arguments: dict[str, Any]) -> Source:
    if name not in READERS:
        raise ValueError(f"unknown data set {name!r}; {hint(name, READERS, 'data sets')}")
    reader: Callable[..., Source] = at(f"trimtab.datasets.{READERS[name][0]}")
    taken = set(inspect.signature(reader).parameters) - {"root"}
    for key in arguments:
        if key not in taken or key == "image_size":
            free = sorted(taken - {"image_size"})
            raise ValueError(f"data set {name!r} takes no argument {key!r}; it takes {free or 'none'}")
    if "image_size" in taken:
        arguments = {**arguments, "image_size": size}
    return reader(root, **arguments)


def _limited(split: Split, limit: int | None, seed: int, name: str) -> Split:
    if limit is None:
        return split
    whole(f"limit_train of {name!r}", limit, 1, len(split))
    if split.task == "text":
        return split.at(torch.arange(limit))
    index: Tensor = balanced_index(split.targets, limit, seed, "limit_train")
    return split.at(index)


def load(
    name: str,
    *,
    root: str | Path | None = None,
    validation: float = 0.1,
    split_seed: int = 0,
    limit_train: int | None = None,
    image_size: Size | None = None,
    **arguments: Any,
) -> DataSet:
    """Read a data set into memory, with training, validation and test splits: of images, or of windows of a text.

    A test or validation split that ships with the data is used as it is. Without a test split, 20 % of the images are
    put aside by a fixed seed, the same for every `split_seed`. Without a validation split, `validation` of the
    training images are taken, by `split_seed`. Both are stratified by class, or take whole groups (patients) where the
    data names them. Mean and standard deviation are those of the training split alone. A text is parted in one piece: its end
    is held back.

    Args:
        name: one of `names()`.
        root: folder or file that holds the data, in the form its authors ship; not needed for digits.
        validation: fraction of the training images for choosing settings, in [0, 1). 0: an empty split.
        split_seed: of the validation split and of `limit_train`.
        limit_train: keep so many training images, with the class proportions of all; of a text the first windows.
        image_size: resize to this side, or (height, width); bilinear with antialiasing, masks by the nearest pixel.
        arguments: further arguments of that reader.

    Raises:
        ValueError: an unknown name or argument, a value out of range, a damaged file (which is named), no root.
        FileNotFoundError: the root or a file in it is missing; the message says what is expected.

    Example:
        >>> digits = load("digits")
        >>> len(digits.train), len(digits.validation), len(digits.test), digits.image_size
        (1293, 144, 360, (8, 8))
    """
    size = _pair(image_size)
    source = _read(name, None if root is None else Path(root).expanduser(), size, dict(arguments))
    train, held_out, test = source.train, source.validation, source.test
    if test is None:
        train, test = part_off(train, TEST_FRACTION, TEST_SEED, "test")
    if held_out is None:
        train, held_out = part_off(train, validation, split_seed, "validation")
    else:
        below_one("validation", validation)
    train = _limited(train, limit_train, split_seed, name)
    if size is not None and train.task == "text":
        raise ValueError(
            f"image_size is {image_size}, but {name!r} is a text; data.arguments.length is how much is seen at once"
        )
    if size is not None:
        train, held_out, test = (_resized(split, size) for split in (train, held_out, test))
    mean, std = channel_statistics(train.images) if train.task != "text" else ((), ())
    return DataSet(source.name, train.task, train, held_out, test, source.classes, mean, std, source.notes)

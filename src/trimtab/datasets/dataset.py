"""What a data set is here: three splits of uint8 images or texts, with class names and the training statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from trimtab.datasets.room import CHUNK, taken

Task = Literal["classification", "segmentation", "text"]
BYTES = 256
"""Different bytes, which are the classes of a text."""
_TASKS: dict[int, Task] = {1: "classification", 2: "text", 3: "segmentation"}
"""By the dimensions of the targets."""


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their targets, or the windows of a text with the bytes that follow.

    Attributes:
        images: uint8, (N, C, H, W); of a text (N, T): bytes of consecutive windows.
        targets: int64; (N,) classes, or (N, H, W) class of each pixel; of a text (N, T): the byte after each.
        groups: int64 (N,), or None; images of one group (a patient) belong together and never lie in two splits.

    Raises:
        TypeError: a dtype is another one.
        ValueError: shapes do not fit each other.

    Example:
        >>> split = Split(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]))
        >>> len(split), split.task
        (2, 'classification')
    """

    images: Tensor
    targets: Tensor
    groups: Tensor | None = None

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8:
            raise TypeError(f"images must be uint8, got {self.images.dtype}")
        if self.targets.dtype != torch.int64:
            raise TypeError(f"targets must be int64, got {self.targets.dtype}")
        shape = tuple(self.images.shape)
        if self.images.ndim not in (2, 4) or 0 in shape[1:]:
            raise ValueError(f"images must have the shape (N, C, H, W), texts (N, T), got {shape}")
        fitting = {shape} if self.images.ndim == 2 else {shape[:1], (shape[0], *shape[2:])}
        if tuple(self.targets.shape) not in fitting:
            allowed = "(N, T) of texts" if self.images.ndim == 2 else "(N,) or (N, H, W) of images"
            raise ValueError(f"targets must have the shape {allowed} {shape}, got {tuple(self.targets.shape)}")
        if self.groups is not None and tuple(self.groups.shape) != shape[:1]:
            raise ValueError(f"groups must have the shape (N,) of images {shape}, got {tuple(self.groups.shape)}")

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def task(self) -> Task:
        """What the targets are for."""
        return _TASKS[self.targets.ndim]

    def at(self, index: Tensor) -> Split:
        """The images at `index` (int64, in that order); of a text only consecutive windows belong together."""
        groups = None if self.groups is None else self.groups[index]
        return Split(taken(self.images, index), self.targets[index], groups)


@dataclass(frozen=True, eq=False)
class DataSet:
    """Training, validation and test images of one task, or texts.

    Attributes:
        name: what it was loaded as.
        task: "classification", "segmentation" or "text".
        train, validation, test: the splits. Settings are chosen on validation; test is for the final figures.
        classes: names of the classes; class 0 of a segmentation is the background; of a text the 256 bytes.
        mean, std: per channel, of the training pixels divided by 255 (biased standard deviation); empty for a text.
        notes: remarks a reader of results should know, such as duplicates between shipped splits.

    Raises:
        ValueError: a target outside the classes, splits whose images differ in shape, no training image.
    """

    name: str
    task: Task
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not len(self.train):
            raise ValueError(f"data set {self.name!r} has no training image")
        for label in ("train", "validation", "test"):
            split: Split = getattr(self, label)
            if split.images.shape[1:] != self.train.images.shape[1:]:
                raise ValueError(
                    f"data set {self.name!r}: {label} images are {tuple(split.images.shape[1:])}, training images "
                    f"{tuple(self.train.images.shape[1:])}"
                )
            if len(split) and split.task != self.task:
                raise ValueError(f"data set {self.name!r}: the targets of {label} are not those of a {self.task}")
            if len(split) and not 0 <= int(split.targets.min()) <= int(split.targets.max()) < len(self.classes):
                raise ValueError(
                    f"data set {self.name!r}: targets of {label} must lie in 0..{len(self.classes) - 1}, found "
                    f"{int(split.targets.min())}..{int(split.targets.max())}"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """Channels of an image."""
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        height, width = self.train.images.shape[2:]
        return height, width

    @property
    def network_arguments(self) -> dict[str, Any]:
        """What `models.create` must know to build a network for these data."""
        if self.task == "text":
            return {"num_classes": self.num_classes, "length": self.train.images.shape[1]}
        return {"num_classes": self.num_classes, "in_channels": self.in_channels, "image_size": self.image_size}

    def example(self, count: int = 1) -> Tensor:
        """A batch of zeros as a network takes it: float32 images, or int64 bytes."""
        shape = (count, *self.train.images.shape[1:])
        return torch.zeros(shape, dtype=torch.int64 if self.task == "text" else torch.float32)

    @property
    def chance(self) -> float:
        """What guessing reaches: one of the classes right; 0 for Dice; for texts the bits of a byte that is guessed by how
        often each occurs, the order-0 entropy of the training text [ours].
        """
        if self.task == "text":
            share = torch.bincount(self.train.images.flatten()).double() / self.train.images.numel()
            return float(torch.special.entr(share).sum()) / math.log(2)
        return 0.0 if self.task == "segmentation" else 1 / self.num_classes


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and biased standard deviation of each channel, exact: from the counts of the 256 values, in float64.

    Args:
        images: uint8, (N, C, H, W), N >= 1.

    Returns:
        mean and std of the values divided by 255. A constant channel gets std 1, so that it can be divided by [ours].

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
        ((0.5,), (0.5,))
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for number in range(images.shape[1]):
        parts = (
            part[:, number].reshape(-1) for part in torch.split(images, CHUNK)
        )  # images may be more than memory holds
        counts = sum(
            (torch.bincount(part, minlength=256) for part in parts), torch.zeros(256, dtype=torch.long)
        ).double()
        mean = (counts * values).sum() / counts.sum()
        variance = (counts * (values - mean).square()).sum() / counts.sum()
        means.append(mean.item())
        stds.append(variance.sqrt().item() if int((counts > 0).sum()) > 1 else 1.0)
    return tuple(means), tuple(stds)

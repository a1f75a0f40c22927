"""What readers of data sets share: the form they return, and clear errors for missing and damaged files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trimtab.datasets.dataset import Split


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader found: the splits as shipped (None where it ships none), class names and remarks."""

    name: str
    train: Split
    classes: tuple[str, ...]
    validation: Split | None = None
    test: Split | None = None
    notes: tuple[str, ...] = ()


def require_root(root: Path | None, name: str, expected: str) -> Path:
    """The folder or file given, which must exist.

    Raises:
        ValueError: none was given.
        FileNotFoundError: it does not exist.
    """
    if root is None:
        raise ValueError(f"data set {name!r} needs root: {expected}")
    if not root.exists():
        raise FileNotFoundError(f"data set {name!r}: {root} does not exist; root must be {expected}")
    return root


def image_tensor(images: NDArray[np.uint8], path: Path) -> Tensor:
    """Images (N, H, W) or (N, H, W, C) with 1, 3 or 4 channels as a uint8 tensor (N, C, H, W)."""
    if images.dtype != np.uint8:
        raise ValueError(f"{path}: images must be uint8, got {images.dtype}")
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[-1] not in (1, 3, 4):
        raise ValueError(f"{path}: images must be (N, H, W) or (N, H, W, 1, 3 or 4), got {images.shape}")
    return torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))


def label_tensor(labels: NDArray[np.integer], classes: int | None, path: Path) -> Tensor:
    """Labels (N,) or (N, 1) as int64, all in 0..classes - 1."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{path}: labels must be whole numbers of shape (N,) or (N, 1), got {labels.dtype} {labels.shape}"
        )
    found = torch.from_numpy(labels.astype(np.int64))
    if len(found) and (int(found.min()) < 0 or (classes is not None and int(found.max()) >= classes)):
        raise ValueError(
            f"{path}: labels must lie in 0..{classes - 1 if classes else '...'}, found {int(found.min())}.."
            f"{int(found.max())}"
        )
    return found


def joined(parts: Sequence[Split]) -> Split:
    """Splits one after the other."""
    groups = [part.groups for part in parts if part.groups is not None]
    return Split(
        torch.cat([part.images for part in parts]),
        torch.cat([part.targets for part in parts]),
        torch.cat(groups) if len(groups) == len(parts) else None,
    )


def duplicates(first: Split, second: Split) -> int:
    """How many images of `first` occur in `second`, byte for byte."""
    known = {_digest(image) for image in second.images.numpy()}
    return sum(_digest(image) in known for image in first.images.numpy())


def _digest(image: NDArray[np.uint8]) -> bytes:
    return hashlib.blake2b(image.tobytes(), digest_size=16).digest()


_report: ContextVar[Callable[[int, int], None] | None] = ContextVar("_report", default=None)


@contextmanager
def reading_told(report: Callable[[int, int], None]) -> Iterator[None]:
    """Inside, `report` is called with how many pictures are read, and of how many, while a data set is read."""
    token = _report.set(report)
    try:
        yield
    finally:
        _report.reset(token)


def tell_read(done: int, total: int) -> None:
    """Called by readers after each picture."""
    if (report := _report.get()) is not None:
        report(done, total)

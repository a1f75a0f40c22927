"""Augmentation of a whole batch at once, on its device: shifted crops and mirrored images, masks alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from trimtab.checks import one_of

Augment = Literal["none", "flip", "crop_flip", "shift", "alternating"]
AUGMENTS: tuple[str, ...] = get_args(Augment)


@dataclass(frozen=True, eq=False)
class Draws:
    """What was drawn for each image: offset of the crop in the padded image (int64, (N,)) and mirrored or not (bool)."""

    rows: Tensor
    columns: Tensor
    mirrored: Tensor

    def part(self, rank: int, world_size: int, count: int) -> Draws:
        """Every `world_size`-th draw from `rank` on, `count` of them."""
        take = slice(rank, None, world_size)
        return Draws(self.rows[take][:count], self.columns[take][:count], self.mirrored[take][:count])


def padding(augment: Augment, size: tuple[int, int]) -> tuple[int, int]:
    """Pixels of border from which a crop may start, (vertical, horizontal).

    "crop_flip" and "shift": an eighth of the side, at least 1: 4 at 32 pixels as is usual for CIFAR, 1 at 8 [ours].
    "alternating": a sixteenth, at least 1 and less than the side, which it mirrors: 2 at 32 pixels (arXiv 2404.00498).

    Example:
        >>> padding("crop_flip", (32, 32)), padding("shift", (8, 8)), padding("flip", (32, 32))
        ((4, 4), (1, 1), (0, 0))
        >>> padding("alternating", (32, 32))
        (2, 2)
    """
    if augment in ("none", "flip"):
        return 0, 0
    if augment == "alternating":
        vertical, horizontal = (min(max(1, side // 16), side - 1) for side in size)
        return vertical, horizontal
    return max(1, size[0] // 8), max(1, size[1] // 8)


def alternating(start: Tensor, epoch: int) -> Tensor:
    """Which images are mirrored in an epoch, if `start` (bool) says which were in epoch 0: each in every second one.

    Two epochs together show every image from both sides, where coin flips show a half of them twice from one
    (arXiv 2404.00498, 3.6).

    Example:
        >>> [alternating(torch.tensor([True, False]), epoch).tolist() for epoch in range(3)]
        [[True, False], [False, True], [True, False]]
    """
    return ~start if epoch % 2 else start


def draw(augment: Augment, count: int, size: tuple[int, int], generator: torch.Generator) -> Draws:
    """Draw offsets and mirrorings for `count` images on the CPU, so that every device gets the same.

    For "alternating", `Batches` puts in the place of these mirrorings those that image and epoch give.

    Raises:
        ValueError: an unknown `augment`.
    """
    one_of("augment", augment, AUGMENTS)
    vertical, horizontal = padding(augment, size)
    rows = torch.randint(2 * vertical + 1, (count,), generator=generator)
    columns = torch.randint(2 * horizontal + 1, (count,), generator=generator)
    mirrored = torch.rand(count, generator=generator) < 0.5
    if augment in ("none", "shift"):
        mirrored = torch.zeros_like(mirrored)
    return Draws(rows, columns, mirrored)


def _reflected(index: Tensor, side: int) -> Tensor:
    """Indices outside 0..side - 1 mirrored at the first and last pixel, which are not repeated."""
    return (side - 1) - (side - 1 - index.abs()).abs()


def apply(augment: Augment, x: Tensor, draws: Draws) -> Tensor:
    """Crop and mirror each image as drawn; the border is 0 (black, or background in a mask), or mirrored ("alternating").

    Args:
        x: images (N, C, H, W) or masks (N, H, W), any dtype.
        draws: one entry per image, on any device.

    Example:
        >>> x = torch.arange(4).reshape(1, 1, 2, 2)
        >>> apply("flip", x, Draws(torch.zeros(1).long(), torch.zeros(1).long(), torch.tensor([True]))).tolist()
        [[[[1, 0], [3, 2]]]]
    """
    if augment == "none":
        return x
    height, width = x.shape[-2:]
    vertical, horizontal = padding(augment, (height, width))
    reflects = augment == "alternating"
    padded = x if reflects or not (vertical or horizontal) else F.pad(x, (horizontal, horizontal, vertical, vertical))
    along = torch.arange(width, device=x.device)
    rows = draws.rows.to(x.device)[:, None] + torch.arange(height, device=x.device)
    steps = torch.where(draws.mirrored.to(x.device)[:, None], width - 1 - along, along)
    columns = draws.columns.to(x.device)[:, None] + steps
    if reflects:  # row -1 is row 1, row `height` is row `height - 2`
        rows, columns = _reflected(rows - vertical, height), _reflected(columns - horizontal, width)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    if x.ndim == 3:
        return padded[image, rows[:, :, None], columns[:, None, :]]
    # Channels last in the gather, then back: the indexed axes come first in the result otherwise.
    return padded.permute(0, 2, 3, 1)[image, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
